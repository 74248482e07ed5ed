"""What the gate is shown of a candidate policy: its answers to held-out prompts beside the live policy's, scored."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from rewardloop.formats.text import Encoder
from rewardloop_client import RewardloopClient
from rewardloop_trainer.completions import sequence_logprobs
from rewardloop_trainer.policy_gate import Answered, Verdict, gate
from rewardloop_trainer.policy_settings import PolicySettings
from rewardloop_trainer.preferences import Prompt, Record
from rewardloop_trainer.rewards import Reward, score_groups
from rewardloop_trainer.rollouts import Rollout, fitting_prompts, roll_out


def verdict(
    candidate: Any,
    live: Any,
    encoder: Encoder,
    heldout: Sequence[Record],
    server: RewardloopClient,
    settings: PolicySettings,
    *,
    seed: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Verdict:
    """Both causal LMs answer the prompts of ``heldout``; the answers to one prompt are scored as one group.

    ``on_batch`` is called now and then, and may raise to stop. Raises RewardloopError when answers were not scored.
    """
    limits = settings.gate
    max_new_tokens = min(limits.max_new_tokens, encoder.max_length // 2)
    prompts = _prompts(encoder, heldout, max_new_tokens, limits.prompts, seed)
    said, before = (
        roll_out(
            model,
            encoder,
            prompts,
            responses=limits.responses,
            max_new_tokens=max_new_tokens,
            seed=seed,
            on_batch=on_batch,
        )
        for model in (candidate, live)
    )
    texts = [[r.text for r in (*ours, *theirs)] for ours, theirs in zip(said, before, strict=True)]
    scores = score_groups(server, prompts, texts, on_batch=on_batch)
    sequences = [rollout.sequence for group in said for rollout in group]
    reference = iter(sequence_logprobs(live, sequences, encoder.format.pad, settings.micro_batch_tokens).tolist())
    return gate(
        [
            [_answered(r, s, r.logprob - next(reference)) for r, s in zip(group, own[: len(group)], strict=True)]
            for group, own in zip(said, scores, strict=True)
        ],
        [
            [_answered(r, s, 0.0) for r, s in zip(group, own[-len(group) :], strict=True)]
            for group, own in zip(before, scores, strict=True)
        ],
        limits,
        seed,
    )


def _prompts(encoder: Encoder, heldout: Sequence[Record], max_new_tokens: int, most: int, seed: int) -> list[Prompt]:
    distinct = list(dict.fromkeys(record.prompt for record in heldout))
    fitting = fitting_prompts(encoder, distinct, max_new_tokens)
    random.Random(seed).shuffle(fitting)
    return fitting[:most]


def _answered(rollout: Rollout, reward: Reward | None, log_ratio: float) -> Answered:
    score = None if reward is None else reward.score
    return Answered(rollout.text, rollout.sequence.tokens, rollout.finish == "length", score, log_ratio)
