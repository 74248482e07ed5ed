"""What a candidate policy says to held-out prompts, beside the live policy's answers, as the gate judges it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

from rewardloop.formats.text import Encoder
from rewardloop_client import RewardloopClient
from rewardloop_trainer.data.completions import encode_completions, sequence_logprobs
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, RankedList, Record
from rewardloop_trainer.evaluation.policy_gate import Answered, Fluency, judge_policy, win_share
from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.policy.rewards import Reward, score_groups
from rewardloop_trainer.policy.rollouts import Rollout, Sampling, fitting_prompts, roll_out
from rewardloop_trainer.policy.settings import PolicySettings


def compare_policies(
    candidate: Any,
    live: Any,
    encoder: Encoder,
    heldout: Sequence[Record],
    server: RewardloopClient,
    settings: PolicySettings,
    on_batch: Callable[[], None] = lambda: None,
) -> Verdict:
    """Let both policies answer the prompts of ``heldout``, score the answers, and judge the candidate by them.

    All answers to one prompt are scored as one group, so that one reward model version scored them.

    Args:
        candidate: The policy that was trained, a causal LM in evaluation mode.
        live: The policy that it would replace, a causal LM in evaluation mode.
        encoder: Tokenizer, text format and maximum length of both.
        heldout: What people said about prompts that the candidate did not learn from.
        server: The service that scores.
        settings: The limits of the gate, its ``judge_version`` included, and the seed of prompts and answers.
        on_batch: Called before each batch of work; it may raise to stop.

    Raises:
        RewardloopError: If answers were not scored.
    """
    limits, seed = settings.gate, settings.seed
    max_new_tokens = min(limits.max_new_tokens, encoder.max_length // 2)
    prompts = _prompts(encoder, heldout, max_new_tokens, limits.prompts, seed)

    sampling = Sampling(limits.responses, max_new_tokens, seed)
    said, before = (roll_out(model, encoder, prompts, sampling, on_batch=on_batch) for model in (candidate, live))
    texts = [[rollout.text for rollout in (*ours, *theirs)] for ours, theirs in zip(said, before, strict=True)]
    scored = score_groups(server, prompts, texts, on_batch=on_batch)
    judged = None
    if limits.judge_version:
        by_judge = score_groups(server, prompts, texts, version=limits.judge_version, on_batch=on_batch)
        judged = [_win_share(group, len(ours)) for group, ours in zip(by_judge, said, strict=True)]
    flat = [rollout for group in said for rollout in group]
    by_live = sequence_logprobs(live, [r.sequence for r in flat], encoder.format.pad, settings.micro_batch_tokens)
    log_ratios = (r.logprob - logprob for r, logprob in zip(flat, by_live.tolist(), strict=True))
    return judge_policy(
        _answered(said, [scores[: len(ours)] for scores, ours in zip(scored, said, strict=True)], log_ratios),
        _answered(before, [scores[len(ours) :] for scores, ours in zip(scored, said, strict=True)], repeat(0.0)),
        limits,
        seed,
        judged=judged,
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
    """Measure both causal LMs on at most ``most`` of the texts that people approved; None if there is no such text.

    A text is approved if it was chosen, ranked best, given the best grade, or written as an edit.
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
    """Return the text that the signal calls good, or "" if it calls none good."""
    match record:
        case Pair(chosen=text) | RankedList(responses=(text, *_)) | Labelled(response=text, label=1.0):
            return text
    return ""


def _prompts(encoder: Encoder, heldout: Sequence[Record], max_new_tokens: int, most: int, seed: int) -> list[Prompt]:
    distinct = list(dict.fromkeys(record.prompt for record in heldout))
    fitting = fitting_prompts(encoder, distinct, max_new_tokens)
    random.Random(seed).shuffle(fitting)
    return fitting[:most]


def _answered(
    said: Sequence[Sequence[Rollout]], scored: Sequence[Sequence[Reward | None]], log_ratios: Iterable[float]
) -> list[list[Answered]]:
    """Join answers, their scores and, in the answers' order, their log-ratios."""
    ratios = iter(log_ratios)

    def join(rollout: Rollout, reward: Reward | None) -> Answered:
        score = None if reward is None else reward.score
        return Answered(rollout.text, rollout.sequence.tokens, rollout.finish == "length", score, next(ratios))

    return [[join(*each) for each in zip(*group, strict=True)] for group in zip(said, scored, strict=True)]


def _win_share(scored: Sequence[Reward | None], ours: int) -> float:
    """Return the share that the candidate won, whose answers are the first ``ours`` of the scored ones."""
    scores = [None if reward is None else reward.score for reward in scored]
    return win_share(scores[:ours], scores[ours:])
