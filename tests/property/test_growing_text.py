"""The text of an answer as it grows is the text of all its ids decoded together, whatever the tokenizer is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_bases import CHAT_KINDS, byte_bpe, chat_base, pieces
from support.families.tokenizers import encoder_tokenizer
from tokenizers import Tokenizer, decoders

from rewardloop_policy.growing_text import GrowingText, Pieces

_TEXTS = (
    "Hello world, how are  you?\n\nfine 🙂🙃 würde das gehen? ▁ <0x41> 中文也可以 ",
    "  two spaces first \ufffd and a character that stands for none",
)
_NOT_LOCAL = ("suffix", "dedup", "joined_spaces")
_OTHER_DECODERS = ("none", "joined_first", *_NOT_LOCAL)


@cache
def tokenizer(kind: str) -> Tokenizer:
    """A tokenizer of a chat base or of an encoder, or one with a decoder that few have."""
    if kind in CHAT_KINDS:
        base: Tokenizer = chat_base(kind).tokenizer
        return base
    if kind not in _OTHER_DECODERS:
        found: Tokenizer = encoder_tokenizer(kind).backend_tokenizer
        return found
    other: Tokenizer = pieces(["<s>", "</s>"], scheme="first")
    space, fuse = decoders.Replace("▁", " "), decoders.Fuse()
    made: dict[str, Any] = {
        "suffix": decoders.BPEDecoder(suffix="e"),
        "none": None,
        "joined_first": decoders.Sequence([fuse, space, decoders.Strip(" ", 2, 0)]),
        "dedup": decoders.CTC(pad_token="</s>"),
        "joined_spaces": decoders.Sequence([space, decoders.ByteFallback(), fuse, decoders.Replace("  ", "_")]),
    }
    other.decoder = made[kind]
    return other


KINDS = (*CHAT_KINDS, "wordpiece", "bytes", "unigram", *_OTHER_DECODERS)


class Counted(Pieces):
    """Counts the tokens that are decoded."""

    tokens = 0

    def decode(self, ids: Sequence[int]) -> str:
        self.tokens += len(ids)
        return super().decode(ids)


def check(kind: str, ids: Sequence[int], steps: Sequence[int] = ()) -> None:
    """Compare the text after each token, or after each of ``steps``, with that of all ids so far."""
    whole = tokenizer(kind)
    growing = GrowingText(Pieces(whole))
    for count in steps or range(len(ids) + 1):
        assert growing.upto(ids, count) == whole.decode(list(ids[:count]), skip_special_tokens=True), count


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_ids_give_the_text_of_all_together(kind: str, data: st.DataObject) -> None:
    """Special tokens, bytes that are no character, and ids that the tokenizer does not know are among them."""
    size = tokenizer(kind).get_vocab_size()
    check(kind, data.draw(st.lists(st.integers(0, size + 3), max_size=40)))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(text=st.text(max_size=60), data=st.data())
def test_any_text_grows_by_any_steps(kind: str, text: str, data: st.DataObject) -> None:
    ids = tokenizer(kind).encode(text, add_special_tokens=False).ids
    check(kind, ids, sorted(data.draw(st.lists(st.integers(0, len(ids)), min_size=1, max_size=10))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", _TEXTS)
def test_texts_with_characters_of_several_tokens_grow_as_they_are(kind: str, text: str) -> None:
    check(kind, tokenizer(kind).encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", ["inst", "inst_first", "no_system"])
def test_bytes_that_stop_making_characters_change_the_run_of_bytes_before_them(kind: str) -> None:
    """The decoder reads a run of byte tokens as a whole, also across a special token."""
    whole = tokenizer(kind)
    numbers = (0x20, 0xC3, 0xA9, 0xFF)
    told = {number: token for number in numbers if (token := whole.token_to_id(f"<0x{number:02X}>")) is not None}
    word = whole.encode("a word", add_special_tokens=False).ids
    run = [told[0xC3], told[0xA9], 1, told[0xC3], told[0xA9], told[0xFF]]
    check(kind, [*word, *run, *word, told[0x20], *run])
    check(kind, [told[0x20], *run, *word])


def test_a_sampled_again_answer_starts_anew() -> None:
    ids = tokenizer("chatml").encode("Hello world", add_special_tokens=False).ids
    growing = GrowingText(Pieces(tokenizer("chatml")))
    for count in [*range(len(ids) + 1), 1, len(ids)]:
        assert growing.upto(ids, count) == tokenizer("chatml").decode(ids[:count])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in _NOT_LOCAL])
def test_the_tokens_that_are_decoded_grow_as_the_answer_does(kind: str) -> None:
    def decoded(times: int) -> float:
        """Decoded tokens for each token of the answer."""
        ids = tokenizer(kind).encode(_TEXTS[0] * times, add_special_tokens=False).ids
        counted = Counted(tokenizer(kind))
        growing = GrowingText(counted)
        for count in range(1, len(ids) + 1):
            growing.upto(ids, count)
        return counted.tokens / len(ids)

    assert decoded(40) <= 1.2 * decoded(10)
    assert decoded(40) < 20


def test_special_tokens_without_end_cost_nothing() -> None:
    counted = Counted(byte_bpe(["<|end|>"]))
    (special,) = counted._special
    growing = GrowingText(counted)
    assert growing.upto([special] * 1_000, 1_000) == ""
    assert counted.tokens == 0


@pytest.mark.parametrize("kind", _NOT_LOCAL)
def test_a_decoder_whose_tokens_change_others_is_not_trusted(kind: str) -> None:
    assert not Pieces(tokenizer(kind)).is_local
