"""The comparison of a sampler's log-probabilities with the learner's, by hand, and the settings of samplers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.policy.online.agreement import Agreement, SamplerDisagrees, agreement, sampled_logprobs
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rollouts import Rollout


def rollout(*logprobs: float, tokens: int | None = None) -> Rollout:
    ids = range(1 + (len(logprobs) if tokens is None else tokens))
    return Rollout("text", Completion(tuple(ids), 1), logprobs, "stop")


def test_differences_are_over_tokens_and_not_over_padding() -> None:
    sampled = sampled_logprobs([rollout(-1.0, -2.0), rollout(-3.0)], torch.zeros(2, 2), "local")
    assert sampled.tolist() == [[-1.0, -2.0], [-3.0, 0.0]]
    learner = torch.tensor([[-1.0, -2.3], [-2.4, 5.0]])
    found = agreement(sampled, learner, torch.tensor([[True, True], [True, False]]))
    assert found.mean == pytest.approx((0.3 + 0.6) / 3)
    assert found.largest == pytest.approx(0.6)
    # r = log mu - log pi: 0, 0.3 and -0.6; k3 = exp(-r) - 1 + r.
    assert found.kl == pytest.approx((math.exp(-0.3) - 0.7 + math.exp(0.6) - 1.6) / 3)


@pytest.mark.parametrize("kl", [0.03, math.nan, math.inf])
def test_a_difference_above_the_limit_or_that_is_no_number_is_refused_by_name(kl: float) -> None:
    with pytest.raises(SamplerDisagrees, match=r"sampler vllm at host:1: .*nats per token.* allows 0\.02"):
        Agreement(0.1, 0.2, kl).check("vllm at host:1", 0.02)
    Agreement(0.1, 0.2, 0.01).check("local", 0.02)


def test_a_response_without_its_log_probabilities_is_refused() -> None:
    with pytest.raises(SamplerDisagrees, match="sampler local: a response of 3 tokens came with 2 log-prob"):
        sampled_logprobs([rollout(-1.0, -2.0, tokens=3)], torch.zeros(1, 3), "local")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"sampler": "vllm", "vllm": {"url": "http://h:8000"}}, "set online.weights to lora"),
        ({"sampler": "vllm", "weights": "lora"}, "needs online.vllm.url"),
        ({"sampler": "vllm", "weights": "lora", "vllm": {"url": "h:8000"}}, "needs online.vllm.url"),
    ],
)
def test_a_sampler_that_cannot_be_used_is_refused_with_what_to_set(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        OnlineSettings.model_validate(given)
