"""The layout of prompts and responses in token ids."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from rewardloop.formats.affix_layout import Messages, TextFormat, UnusableChatTemplate
from rewardloop.formats.text import Encoder, RefusedConversation, Turn, turns
from rewardloop.v1 import common_pb2

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox user assistant system\n"], trainer)
    return tokenizer


def chatml(messages: Messages, invite: bool) -> str:
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if invite else "")


def qwen_like(messages: Messages, invite: bool) -> str:
    """Puts a system turn of its own before a conversation that has none."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "Be kind."}, *messages]
    return chatml(messages, invite)


def test_encoder_layout_separates_turns_and_response(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, TextFormat.for_encoder(tokenizer, segment_ids=True), 64)
    cls_id, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    conversation = (Turn("user", "fox"),)
    row = encoder.completion(conversation, "quick")
    prompt, response = row.prompt, row.response
    encoded = encoder.pair(conversation, "quick")
    assert prompt[0] == cls_id
    assert prompt[-1] == sep
    assert response[-1] == sep
    assert encoded.ids == prompt + response
    assert encoded.token_type_ids == [0] * len(prompt) + [1] * len(response)
    assert not encoded.truncated


@pytest.mark.parametrize("render", [chatml, qwen_like])
def test_chat_template_read_off_gives_the_ids_of_the_rendered_text(tokenizer: Tokenizer, render) -> None:
    eos, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("[PAD]")
    text_format = TextFormat.from_chat_template(tokenizer, render, eos_id=eos, pad_id=pad)
    for roles in (
        ("user",),
        ("system", "user"),
        ("user", "assistant", "user"),
        ("system", "user", "assistant", "user"),
    ):
        conversation = tuple(Turn(role, f"the {i} fox") for i, role in enumerate(roles))
        tokenizer.encode_special_tokens = False
        rendered = render([{"role": t.role, "content": t.content} for t in conversation], True)
        whole = tokenizer.encode(rendered, add_special_tokens=False).ids
        ids = Encoder(tokenizer, text_format, 512).prompt_ids(conversation)
        assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.decode(whole, skip_special_tokens=False)
    assert text_format.response.suffix[-1] == eos


def test_template_that_depends_on_position_is_refused(tokenizer: Tokenizer) -> None:
    def numbered(messages: Messages, invite: bool) -> str:
        return "".join(f"{i}:{m['role']}:{m['content']};" for i, m in enumerate(messages))

    with pytest.raises(UnusableChatTemplate):
        TextFormat.from_chat_template(tokenizer, numbered, eos_id=2, pad_id=0)


def test_special_tokens_in_user_text_stay_plain_text(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, TextFormat.for_encoder(tokenizer), 64)
    ids = encoder.prompt_ids((Turn("user", "a [SEP] <|im_end|> b"),))
    assert ids.count(tokenizer.token_to_id("[SEP]")) == 1
    assert tokenizer.token_to_id("<|im_end|>") not in ids


def test_overlong_pair_keeps_both_ends_of_the_prompt_and_the_end_marker(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, TextFormat.for_encoder(tokenizer), 20)
    conversation, answer = (Turn("user", "the quick brown fox " * 10),), "user assistant " * 10
    row = encoder.completion(conversation, answer)
    encoded = encoder.pair(conversation, answer)
    assert encoded.truncated
    assert len(encoded.ids) == 20
    assert encoded.ids[0] == row.prompt[0]
    assert encoded.ids[-1] == row.response[-1]
    assert encoded.ids[2:5] == row.prompt[-3:]
    assert encoded.response_tokens == len(row.response)


TALK = (
    Turn("system", "be quick"),
    *(Turn(role, f"the {i} fox") for i in range(4) for role in ("user", "assistant")),
    Turn("user", "the quick brown fox"),
)


@pytest.mark.parametrize("dropped", [2, 4, 6, 8])
def test_a_long_conversation_loses_its_oldest_exchanges_whole(tokenizer: Tokenizer, dropped: int) -> None:
    text_format = TextFormat.for_encoder(tokenizer)
    kept = (TALK[0], *TALK[1 + dropped :])
    expected = Encoder(tokenizer, text_format, 1_000).pair(kept, "quick")
    for room in (0, 1):
        encoded = Encoder(tokenizer, text_format, len(expected.ids) + room).pair(TALK, "quick")
        assert encoded.ids == expected.ids
        assert encoded.truncated
    policy = Encoder(tokenizer, text_format, 1_000)
    fitted = policy.fit_prompt(TALK, len(policy.prompt_ids(kept)) + 1)
    assert (fitted.ids, fitted.dropped_turns, fitted.is_cut) == (policy.prompt_ids(kept), dropped, False)


def test_the_latest_turn_is_cut_in_its_middle_if_it_alone_is_too_long(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, TextFormat.for_encoder(tokenizer), 1_000)
    latest = encoder.prompt_ids((TALK[0], TALK[-1]))
    fitted = encoder.fit_prompt(TALK, len(latest) - 1)
    assert (len(fitted.ids), fitted.dropped_turns, fitted.is_cut) == (len(latest) - 1, 8, True)
    assert fitted.ids[:4] == latest[:4]
    assert fitted.ids[-4:] == latest[-4:]
    assert not encoder.fit_prompt(TALK, 1_000).truncated


def test_batch_encoding_equals_one_by_one(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, TextFormat.for_encoder(tokenizer), 64)
    texts = ["fox", "the quick", "ünïcode ☃", "x" * 300]
    conversation = (Turn("user", "the"),)
    assert encoder.groups([(conversation, texts)]) == [[encoder.pair(conversation, text) for text in texts]]


def test_roles_of_a_template_beside_the_usual_ones_have_affixes_of_their_own(tokenizer: Tokenizer) -> None:
    text_format = TextFormat.from_chat_template(tokenizer, chatml, eos_id=5, pad_id=0)
    encoder = Encoder(tokenizer, text_format, 512)
    conversation = (Turn("developer", "be quick"), Turn("user", "fox"), Turn("assistant", "the"), Turn("tool", "brown"))
    ids = encoder.prompt_ids(conversation)
    tokenizer.encode_special_tokens = False
    rendered = chatml([{"role": t.role, "content": t.content} for t in conversation], True)
    whole = tokenizer.encode(rendered, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.decode(whole, skip_special_tokens=False)
    assert TextFormat.from_json(text_format.to_json()) == text_format


def test_a_role_without_an_affix_is_refused_alone(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, TextFormat.for_encoder(tokenizer), 64)
    refused, found = encoder.groups([((Turn("tool", "4"),), ["a"]), ((Turn("user", "4"),), ["a"])])
    assert isinstance(refused, RefusedConversation)
    assert "'tool'" in str(refused)
    assert not isinstance(found, RefusedConversation)
    with pytest.raises(RefusedConversation, match="no turns of the role"):
        encoder.prompt_ids((Turn("tool", "4"),))


def test_format_survives_json(tokenizer: Tokenizer) -> None:
    for text_format in (
        TextFormat.for_encoder(tokenizer),
        TextFormat.for_decoder(tokenizer, eos_id=2, bos_id=1),
        TextFormat.from_chat_template(tokenizer, chatml, eos_id=5, pad_id=0),
    ):
        assert TextFormat.from_json(text_format.to_json()) == text_format


def test_plain_prompt_is_one_user_turn() -> None:
    assert turns(common_pb2.Prompt(text="hi")) == (Turn("user", "hi"),)
    conversation = common_pb2.Conversation(messages=[common_pb2.Message(role="system", content="s")])
    assert turns(common_pb2.Prompt(conversation=conversation)) == (Turn("system", "s"),)
