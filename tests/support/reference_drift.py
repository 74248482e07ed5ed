"""Rounds of DPO on a tiny policy whose pairs a fixed taste judges, held to the first policy or to each start."""

from __future__ import annotations

import random
import statistics
from typing import Any

import torch

from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.data.completions import sequence_logprobs
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.policy.dpo_train import train_policy
from rewardloop_trainer.policy.offline_settings import DpoSettings
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.rollouts import Sampling, roll_out
from support.policy_versions import quick_policy

PROMPTS: list[Prompt] = [(Turn("user", f"q{i}"),) for i in range(64)]
TOKENS = 12
DPO = DpoSettings.model_validate({"learning_rate": 1e-3, "batch_pairs": 16, "beta": 0.5, "sft_weight": 0.0})


def liking(text: str) -> float:
    """The taste: the letter a, up to six times."""
    return float(min(text.count("a"), 6))


def judged(model: Any, encoder: Encoder, seed: int) -> list[Pair]:
    """A pair of the policy's answers to each prompt, as a noisy person prefers them."""
    chance = random.Random(seed)
    pairs = []
    for prompt, (one, other) in zip(PROMPTS, roll_out(model, encoder, PROMPTS, Sampling(2, TOKENS, seed)), strict=True):
        wins = chance.random() < torch.sigmoid(torch.tensor(liking(one.text) - liking(other.text))).item()
        better, worse = (one, other) if wins else (other, one)
        if better.text != worse.text:
            pairs.append(Pair(prompt, better.text, worse.text))
    return pairs


def sampled_kl(policy: Any, reference: Any, encoder: Encoder, seed: int) -> float:
    """KL(policy || reference) in nats per response: the mean log ratio of responses that the policy samples."""
    said = [r for group in roll_out(policy, encoder, PROMPTS, Sampling(2, TOKENS, seed)) for r in group]
    by_reference = sequence_logprobs(reference, [r.sequence for r in said], encoder.format.pad, 8_192).tolist()
    return statistics.mean(r.logprob - other for r, other in zip(said, by_reference, strict=True))


def drift(seed: int, rounds: int, *, is_pinned: bool) -> tuple[list[float], float]:
    """Returns the KL to the first policy after each round, in nats per response, and the mean liking at the end."""
    model, encoder = quick_policy(seed)
    first, _ = quick_policy(seed)
    reference = Reference("1", "first", lambda: quick_policy(seed)[0]) if is_pinned else None
    kls = []
    for number in range(rounds):
        settings = DPO.model_copy(update={"seed": seed * 1_000 + number})
        train_policy(model, encoder, judged(model, encoder, settings.seed), [], settings, reference=reference)
        kls.append(sampled_kl(model, first, encoder, number))
    said = roll_out(model, encoder, PROMPTS, Sampling(2, TOKENS, seed=99))
    return kls, statistics.mean(liking(r.text) for group in said for r in group)
