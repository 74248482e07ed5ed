"""No text of a caller gets an id that an affix layout writes, whatever kind of tokenizer it is."""

from __future__ import annotations

import random

import pytest
from support.chat_bases import CHAT_KINDS, chat_base
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.control_tokens import can_be_forged
from rewardloop.formats.text import RefusedConversation, Turn

TEXTS = ["the quick brown fox jumps over the lazy dog", "user assistant system [ ] < > / | s SEP CLS"] * 5
NAMES = {"wordpiece": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "unigram": ["<pad>", "<s>", "</s>", "<unk>"]}
NAMES["bpe"] = NAMES["unigram"]


def encoder_tokenizer(kind: str) -> Tokenizer:
    """A tokenizer with an encoder's special tokens among its pieces, and an added token that is not special."""
    names = NAMES[kind]
    alphabet = sorted({*"".join(TEXTS), *map(chr, range(33, 127))})
    arguments = {"vocab_size": 300, "special_tokens": names, "initial_alphabet": alphabet, "show_progress": False}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=names[-1]))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(**arguments)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=names[-1]))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(**arguments)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=names[-1], **arguments)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<|role|>", special=False, normalized=False)])
    return tokenizer


def contents(names: list[str], seed: str) -> list[str]:
    """A thousand contents of whole names, of parts of names and of words, with and without space between them."""
    chance = random.Random(seed)

    def content() -> str:
        pieces = []
        for _ in range(chance.randint(1, 6)):
            name = chance.choice(names)
            cut = chance.randint(0, len(name))
            pieces.append(chance.choice([name, name[:cut], name[cut:], "fox", "\n", "日"]))
        return chance.choice(["", " "]).join(pieces)

    return [content() for _ in range(1_000)]


@pytest.mark.parametrize("writes_added", [False, True])
@pytest.mark.parametrize("kind", NAMES)
def test_no_content_gets_an_id_of_an_encoders_layout(kind: str, writes_added: bool) -> None:
    tokenizer = encoder_tokenizer(kind)
    text_format = TextFormat.for_encoder(tokenizer)
    names = [*NAMES[kind], "<|role|>"]
    if writes_added:  # as a template whose role markers are not flagged special
        data = text_format.to_json()
        data["user"]["prefix"] = [tokenizer.token_to_id("<|role|>")]
        text_format = TextFormat.from_json(data)
    written = set(text_format.ids)
    (layout,) = (text_format.layout(tokenizer),)
    (harmless,) = layout.rows([((Turn("user", "fox"),), ["dog"])])
    assert not isinstance(harmless, RefusedConversation)
    expected = [i for i in harmless[0].prompt + harmless[0].response if i in written]
    texts = contents(names, kind)
    for rows in layout.rows(
        [((Turn("user", text),), [other]) for text, other in zip(texts, reversed(texts), strict=True)]
    ):
        assert not isinstance(rows, RefusedConversation)
        assert [i for i in rows[0].prompt + rows[0].response if i in written] == expected


def test_a_unigram_piece_and_an_added_token_that_is_not_special_can_be_forged() -> None:
    for kind in NAMES:
        tokenizer = encoder_tokenizer(kind)
        tokenizer.encode_special_tokens = True
        assert can_be_forged(tokenizer, [tokenizer.token_to_id("<|role|>")])
    assert can_be_forged(encoder_tokenizer("unigram"), [])


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_plain_layouts_of_decoders_are_safe_too(kind: str) -> None:
    base = chat_base(kind)
    tokenizer = base.hugging_face().backend_tokenizer
    eos = tokenizer.token_to_id(base.eos)
    layout = TextFormat.for_decoder(tokenizer, eos_id=eos).layout(tokenizer)
    names = [token.content for token in base.tokenizer.get_added_tokens_decoder().values()][:40]
    special = {i for i, token in base.tokenizer.get_added_tokens_decoder().items() if token.special} - {
        base.tokenizer.token_to_id("<unk>")
    }
    for rows in layout.rows([((Turn("user", text),), ["ok"]) for text in contents(names, kind)]):
        assert not isinstance(rows, RefusedConversation)
        assert [i for i in rows[0].prompt + rows[0].response if i in special] == [eos]
