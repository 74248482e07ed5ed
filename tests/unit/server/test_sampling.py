"""Sampling: the distribution, the nucleus, greedy, ends and log-probabilities."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rewardloop_sampling.drawing import RowSettings, next_tokens
from rewardloop_sampling.running_batch import sample
from rewardloop_sampling.sampling import SampleRequest

VOCABULARY = 23
PAD, END = 0, 1


def tiny(kind: str = "llama") -> Any:
    torch.manual_seed(5)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.4,
    }
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.4
        )
        return GPT2LMHeadModel(config).double().eval()
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape)).double().eval()
    return LlamaForCausalLM(LlamaConfig(**shape)).double().eval()


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def one(logits: torch.Tensor, uniform: float, temperature: float = 1.0, top_p: float = 1.0) -> tuple[int, float]:
    settings = RowSettings.of([temperature], [top_p], logits.device)
    ids, logprobs = next_tokens(logits, settings, torch.tensor([uniform], dtype=torch.float64))
    return int(ids[0]), float(logprobs[0])


def test_inverse_cdf_splits_the_unit_interval_by_probability() -> None:
    logits = row(0.5, 0.3, 0.2).log()
    for uniform, token, probability in (
        (0.0, 0, 0.5),
        (0.499, 0, 0.5),
        (0.501, 1, 0.3),
        (0.799, 1, 0.3),
        (0.81, 2, 0.2),
    ):
        got, logprob = one(logits, uniform)
        assert got == token
        assert logprob == pytest.approx(math.log(probability), abs=1e-6)


def test_temperature_divides_the_logits() -> None:
    # At temperature 1/2 probabilities 0.8 and 0.2 become 16/17 and 1/17.
    token, logprob = one(row(0.8, 0.2).log(), 0.95, temperature=0.5)
    assert token == 1
    assert logprob == pytest.approx(math.log(1 / 17), abs=1e-5)


def test_nucleus_is_the_smallest_set_that_reaches_top_p_renormalised() -> None:
    logits = row(0.1, 0.5, 0.15, 0.25).log()
    # 0.5 < 0.7 <= 0.5 + 0.25: tokens 1 and 3 remain, with 2/3 and 1/3.
    for uniform, token, probability in ((0.0, 1, 2 / 3), (0.66, 1, 2 / 3), (0.67, 3, 1 / 3), (0.9999999, 3, 1 / 3)):
        got, logprob = one(logits, uniform, top_p=0.7)
        assert got == token
        assert logprob == pytest.approx(math.log(probability), abs=1e-6)


def test_tiny_top_p_leaves_the_most_probable_token_with_certainty() -> None:
    assert one(row(0.3, 0.4, 0.3).log(), 0.999, top_p=1e-9) == (1, 0.0)


def test_a_token_without_mass_is_never_taken_at_either_end() -> None:
    logits = row(float("-inf"), 0.0, float("-inf"))
    for uniform in (0.0, 1.0 - 2**-53):
        assert one(logits, uniform) == (1, 0.0)


def test_greedy_takes_the_most_probable_token_with_certainty() -> None:
    assert one(row(1.0, 3.0, 2.0), 0.99, temperature=0.0) == (1, 0.0)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_logprobs_are_those_of_the_model_over_the_whole_sequence(kind: str) -> None:
    model = tiny(kind)
    prompts = [[3, 4, 5, 6, 7, 8, 9], [10], [4, 4, 12]]
    requests = [SampleRequest(p, 2, 0.7, 1.0, seed, 12) for seed, p in enumerate(prompts)]
    for prompt, group in zip(prompts, sample(model, requests, end_ids=[END], pad_id=PAD), strict=True):
        for sampled in group:
            ids = torch.tensor([prompt + sampled.ids])
            with torch.no_grad():
                logprobs = (model(ids).logits[0, len(prompt) - 1 : -1] / 0.7).float().log_softmax(-1)
            expected = logprobs[range(len(sampled.ids)), sampled.ids]
            torch.testing.assert_close(torch.tensor(sampled.logprobs), expected, atol=1e-5, rtol=0)
            assert sampled.logprob == pytest.approx(float(expected.sum()), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_equals_the_models_own_argmax_continuation(kind: str) -> None:
    model = tiny(kind)
    prompts = [[3, 4, 5], [9, 8, 7, 6, 5, 4], [2]]
    groups = sample(model, [SampleRequest(p, 1, 0.0, 1.0, 0, 8) for p in prompts], end_ids=[END], pad_id=PAD)
    for prompt, (sampled,) in zip(prompts, groups, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 8 and (len(ids) == len(prompt) or ids[-1] != END):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert sampled.ids == ids[len(prompt) :]
        assert sampled.logprob == 0.0


def test_sampled_tokens_follow_the_models_distribution() -> None:
    model = tiny()
    with torch.no_grad():
        expected = model(torch.tensor([[3, 4]])).logits[0, -1].softmax(-1)
    requests = [SampleRequest([3, 4], 100, 1.0, 1.0, seed, 1) for seed in range(40)]
    groups = sample(model, requests, end_ids=[END], pad_id=PAD)
    counts = Counter(sampled.ids[0] for group in groups for sampled in group)
    n = sum(counts.values())
    chi_squared = sum((counts[t] - n * float(p)) ** 2 / (n * float(p)) for t, p in enumerate(expected))
    assert chi_squared < 48.3  # 99.9% quantile at 22 degrees of freedom


def test_a_seed_gives_the_texts_that_it_has_always_given() -> None:
    requests = [
        SampleRequest([3, 4, 5, 6], 2, 0.8, 0.9, 7, 8),
        SampleRequest([9], 1, 1.0, 1.0, -5, 10),
        SampleRequest([10, 11], 1, 0.0, 1.0, 0, 6),
    ]
    said = [[sampled.ids for sampled in group] for group in sample(tiny(), requests, end_ids=[END], pad_id=PAD)]
    assert said == [
        [[8, 9, 21, 19, 6, 18, 12, 17], [20, 5, 17, 20, 21, 12, 20, 14]],
        [[17, 21, 20, 0, 17, 20, 21, 21, 5, 8]],
        [[3, 10, 15, 13, 15, 15]],
    ]


def test_end_token_stops_a_candidate_and_is_part_of_it() -> None:
    groups = sample(tiny(), [SampleRequest([3], 64, 1.0, 1.0, 1, 6)], end_ids=[END, 2], pad_id=PAD)
    finishes = Counter(sampled.finish for sampled in groups[0])
    assert finishes["stop"] > 0
    assert finishes["length"] > 0
    for sampled in groups[0]:
        assert not {END, 2} & set(sampled.ids[:-1])
        if sampled.finish == "stop":
            assert sampled.ids[-1] in (END, 2)
        else:
            assert len(sampled.ids) == 6


@pytest.mark.parametrize(
    "request_", [SampleRequest([]), SampleRequest([3], candidates=0), SampleRequest([3], max_new_tokens=0)]
)
def test_requests_without_prompt_candidate_or_room_are_refused(request_: SampleRequest) -> None:
    with pytest.raises(ValueError, match="a request needs"):
        sample(tiny(), [request_], end_ids=[END], pad_id=PAD)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    model = tiny()
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        sample(model, [SampleRequest([3])], end_ids=[END], pad_id=PAD)


def test_an_abandoned_request_ends_and_leaves_the_others_as_they_are() -> None:
    requests = [SampleRequest([3, 4], 2, seed=1, max_new_tokens=40), SampleRequest([5], 1, seed=2, max_new_tokens=40)]
    asked: list[int] = []

    def is_abandoned(request: int) -> bool:
        asked.append(request)
        return request == 1 and asked.count(1) > 3

    whole = sample(tiny(), requests, end_ids=[], pad_id=PAD)
    cut = sample(tiny(), requests, end_ids=[], pad_id=PAD, is_abandoned=is_abandoned)
    assert cut[0] == whole[0]
    assert cut[1][0].ids == whole[1][0].ids[:4]
