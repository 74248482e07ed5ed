"""Conversations to learn from: what is learned of them, and that packing changes no loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.policy_versions import byte_encoder, small_llama
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from rewardloop.formats.affix_layout import Affix
from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.data.completions import Completion, sequence_logprobs
from rewardloop_trainer.data.dialogues import Dialogue, Example, encode_dialogues, keeps_apart, pack, token_losses

ENCODER = byte_encoder(256)
TALK = Dialogue(
    (
        Turn("system", "Be kind."),
        Turn("user", "hi"),
        Turn("assistant", "hello"),
        Turn("user", "bye"),
        Turn("assistant", "farewell"),
    ),
    0,
)


def learned_texts(encoder: Encoder, example: Example) -> list[str]:
    return [
        encoder.tokenizer.decode(list(example.ids[start:end]), skip_special_tokens=False)
        for start, end in example.spans
    ]


def model_of(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3,
            attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval()
    if kind == "qwen2-eager":
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = Qwen2Config(vocab_size=258, num_key_value_heads=2, initializer_range=0.3, **shape)
        return Qwen2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    return small_llama(3)


def test_every_assistant_turn_with_its_end_is_learned_and_nothing_else() -> None:
    (example,), dropped = encode_dialogues(ENCODER, [TALK])
    assert dropped == 0
    assert learned_texts(ENCODER, example) == ["hello<end>", "farewell<end>"]
    (last,), _ = encode_dialogues(ENCODER, [replace(TALK, first_learned=4)])
    assert last.ids == example.ids
    assert learned_texts(ENCODER, last) == ["farewell<end>"]


def test_an_example_is_laid_out_as_the_policy_is_asked_and_answers() -> None:
    (example,), _ = encode_dialogues(ENCODER, [TALK])
    last = ENCODER.completion(TALK.turns[:-1], "farewell")
    assert list(example.ids) == ENCODER.prompt_ids(TALK.turns[:-1]) + last.response
    earlier = ENCODER.completion(TALK.turns[:2], "hello")
    assert list(example.ids[: len(earlier.prompt + earlier.response)]) == earlier.prompt + earlier.response


def test_a_layout_that_writes_past_answers_differently_gives_each_turn_its_own_example() -> None:
    invites = replace(ENCODER.format, response=Affix((*ENCODER.format.response.prefix, 40), (1,)))
    encoder = Encoder(ENCODER.tokenizer, invites, 256)
    examples, _ = encode_dialogues(encoder, [TALK])
    assert [learned_texts(encoder, each) for each in examples] == [["hello<end>"], ["farewell<end>"]]
    for example, turns, answer in zip(examples, (TALK.turns[:2], TALK.turns[:4]), ("hello", "farewell"), strict=True):
        assert list(example.ids) == encoder.prompt_ids(turns) + encoder.completion(turns, answer).response


def test_over_length_examples_are_dropped_and_counted() -> None:
    long = Dialogue.answered((Turn("user", "hi"),), "x" * 300)
    examples, dropped = encode_dialogues(ENCODER, [long, TALK])
    assert (len(examples), dropped) == (1, 1)


def test_first_fit_decreasing_by_hand() -> None:
    assert pack([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]
    assert pack([12, 3], 10) == [[0], [1]]


@given(st.lists(st.integers(1, 30), max_size=40))
def test_packing_keeps_every_example_once_and_rows_within_their_length(lengths: list[int]) -> None:
    rows = pack(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= 20 for row in rows)


def test_a_loss_is_the_log_probability_of_its_token_given_its_own_conversation() -> None:
    model = small_llama(3)
    (example,), _ = encode_dialogues(ENCODER, [TALK])
    logits = model(input_ids=torch.tensor([example.ids])).logits[0]
    learned = [t for start, end in example.spans for t in range(start, end)]
    expected = [-log_softmax(logits[t - 1], -1)[example.ids[t]].item() for t in learned]
    assert token_losses(model, [[example]], 0).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2-eager"])
def test_packed_examples_have_the_losses_and_gradients_that_they_have_alone(kind: str) -> None:
    model = model_of(kind)
    asked = (("tell me", "no"), ("a much longer question than that?", "yes, certainly, of course"), ("q", "a"))
    dialogues = [Dialogue.answered((Turn("user", q),), a) for q, a in asked]
    examples, _ = encode_dialogues(ENCODER, [*dialogues, TALK])
    packed = [[examples[1], examples[3], examples[0]], [examples[2]]]
    alone = torch.cat([token_losses(model, [[each]], 0) for row in packed for each in row])
    together = token_losses(model, packed, 0)
    assert (alone - together).abs().max() < 1e-5
    for one, other in zip(gradients(model, alone), gradients(model, together), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert keeps_apart(model, examples, 0)
    rows = [Completion(each.ids, each.spans[0][0]) for each in examples[:3]]
    sums = [-token_losses(model, [[each]], 0).sum().item() for each in examples[:3]]
    assert sums == pytest.approx(sequence_logprobs(model, rows, 0, 1_000).tolist(), abs=1e-4)


def test_a_model_that_ignores_the_mask_is_found_out() -> None:
    model = small_llama(3)
    read = model.model.forward
    model.model.forward = lambda attention_mask=None, position_ids=None, **given: read(**given)
    examples, _ = encode_dialogues(ENCODER, [TALK, TALK])
    assert not keeps_apart(model, examples, 0)


def gradients(model: Any, losses: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(losses.mean(), list(model.parameters())))
