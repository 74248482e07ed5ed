"""What the gate is shown of a candidate policy: its answers to held-out prompts beside the live policy's, judged."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rewardloop.formats.text import Encoder
from rewardloop_client import RewardloopClient
from rewardloop_trainer.data.completions import encode_completions, sequence_logprobs
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, RankedList, Record
from rewardloop_trainer.evaluation.policy_gate import Answered, Fluency, Verdict, gate, win_share
from rewardloop_trainer.policy.rewards import Reward, score_groups
from rewardloop_trainer.policy.rollouts import Rollout, Sampling, fitting_prompts, roll_out
from rewardloop_trainer.policy.settings import PolicySettings

Texts = Sequence[Sequence[str]]


class Judge(Protocol):
    """Says whose answers are better, and has no part in what the candidate learned from."""

    def __call__(self, prompts: Sequence[Prompt], candidate: Texts, live: Texts) -> Sequence[float]:
        """The share that the candidate's answers won, of each prompt, in [0, 1]; a tie is half."""


class ScoreJudge:
    """Judges by the scores of one reward model ``version``, which must be warm on the server."""

    def __init__(self, server: RewardloopClient, version: str, on_batch: Callable[[], None] = lambda: None) -> None:
        self._server = server
        self._version = version
        self._on_batch = on_batch

    def __call__(self, prompts: Sequence[Prompt], candidate: Texts, live: Texts) -> Sequence[float]:
        """Raises RewardloopError when answers were not scored, UnknownVersion above all."""
        texts = [[*ours, *theirs] for ours, theirs in zip(candidate, live, strict=True)]
        rewards = score_groups(self._server, prompts, texts, version=self._version, on_batch=self._on_batch)
        scores = [[None if reward is None else reward.score for reward in group] for group in rewards]
        return [
            win_share(group[: len(ours)], group[len(ours) :]) for group, ours in zip(scores, candidate, strict=True)
        ]


def verdict(
    candidate: Any,
    live: Any,
    encoder: Encoder,
    heldout: Sequence[Record],
    server: RewardloopClient,
    settings: PolicySettings,
    *,
    seed: int,
    judge: Judge | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Verdict:
    """Both causal LMs answer the prompts of ``heldout``; the answers to one prompt are scored as one group.

    ``judge``: by default the reward version that the settings name; where they name none, the scores decide.
    ``on_batch`` is called now and then, and may raise to stop. Raises RewardloopError when answers were not scored.
    """
    limits = settings.gate
    if judge is None and limits.judge_version:
        judge = ScoreJudge(server, limits.judge_version, on_batch)
    max_new_tokens = min(limits.max_new_tokens, encoder.max_length // 2)
    prompts = _prompts(encoder, heldout, max_new_tokens, limits.prompts, seed)
    sampling = Sampling(limits.responses, max_new_tokens, seed)
    said, before = (roll_out(model, encoder, prompts, sampling, on_batch=on_batch) for model in (candidate, live))
    ours, theirs = ([[r.text for r in group] for group in groups] for groups in (said, before))
    texts = [[*a, *b] for a, b in zip(ours, theirs, strict=True)]
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
        judged=None if judge is None else judge(prompts, ours, theirs),
        fluency=fluency(candidate, live, encoder, heldout, limits.prompts, settings.micro_batch_tokens, seed),
    )


def fluency(
    candidate: Any,
    live: Any,
    encoder: Encoder,
    heldout: Sequence[Record],
    most: int,
    micro_batch_tokens: int,
    seed: int = 0,
) -> Fluency | None:
    """Of both causal LMs on at most ``most`` of the texts that people approved; None: there are none.

    Those are what was chosen, best ranked, given the best grade, or written as an edit.
    """
    approved = dict.fromkeys((record.prompt, text) for record in heldout if (text := _approved(record)))
    encoded = [row for row in encode_completions(encoder, list(approved)) if row is not None]
    random.Random(seed).shuffle(encoded)
    rows = encoded[:most]
    if not rows:
        return None
    tokens = sum(row.tokens for row in rows)
    nats = (
        -float(sequence_logprobs(model, rows, encoder.format.pad, micro_batch_tokens).sum()) / tokens
        for model in (candidate, live)
    )
    return Fluency(*nats)


def _approved(record: Record) -> str:
    """The text that the signal calls good; "" for none."""
    match record:
        case Pair(chosen=text) | RankedList(responses=(text, *_)) | Labelled(response=text, label=1.0):
            return text
    return ""


def _prompts(encoder: Encoder, heldout: Sequence[Record], max_new_tokens: int, most: int, seed: int) -> list[Prompt]:
    distinct = list(dict.fromkeys(record.prompt for record in heldout))
    fitting = fitting_prompts(encoder, distinct, max_new_tokens)
    random.Random(seed).shuffle(fitting)
    return fitting[:most]


def _answered(rollout: Rollout, reward: Reward | None, log_ratio: float) -> Answered:
    score = None if reward is None else reward.score
    return Answered(rollout.text, rollout.sequence.tokens, rollout.finish == "length", score, log_ratio)
