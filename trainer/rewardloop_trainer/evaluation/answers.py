"""What a candidate policy says to held-out prompts, beside the live policy's answers, as the gate judges it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, TypeAlias, TypedDict

import numpy as np

from rewardloop.formats.text import Encoder
from rewardloop_client import RewardloopClient
from rewardloop_trainer.data.completions import Completion, encode_completions, sequence_logprobs
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, RankedList, Record, weighing
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.evaluation.policy_gate import Answered, Fluency, FromAnchor, judge_policy, plan_of, win_share
from rewardloop_trainer.evaluation.refused_examples import policy_examples
from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.policy.rewards import score_groups
from rewardloop_trainer.policy.rollouts import Rollout, Sampling, fitting_prompts, roll_out
from rewardloop_trainer.policy.settings import PolicySettings

Scores: TypeAlias = list[list[float | None]]
# Scores the responses to each prompt; an empty response has no score.
Scorer: TypeAlias = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Scores]


@dataclass(frozen=True, slots=True)
class Contenders:
    """The policies that a gate compares, causal LMs in evaluation mode with one encoder.

    Attributes:
        candidate: The policy that was trained.
        live: The policy that it would replace.
        encoder: Tokenizer, text format and maximum length of both.
        anchor: The version from which drift is measured, and what loads it; None if that is the live one.
    """

    candidate: Any
    live: Any
    encoder: Encoder
    anchor: tuple[str, Callable[[], Any]] | None = None


def server_scorer(
    server: RewardloopClient,
    version: str | None = None,
    on_batch: Callable[[], None] = lambda: None,
    model: str = "",
) -> Scorer:
    """Return a scorer that asks the service.

    All responses to one prompt are scored as one group, so that one reward model version scores them.

    Args:
        server: The service that scores.
        version: The reward version that scores, warm on the server; None for the one that serves.
        on_batch: Called before each request; it may raise to stop.
        model: The reward model or mixture that scores; empty for "reward".
    """

    def score(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> Scores:
        found = score_groups(server, prompts, texts, version=version, model=model, on_batch=on_batch)
        return [[None if reward is None else reward.score for reward in group] for group in found]

    return score


def compare_policies(
    contenders: Contenders,
    heldout: Sequence[Record],
    score: Scorer,
    settings: PolicySettings,
    judge: Scorer | None = None,
    on_batch: Callable[[], None] = lambda: None,
    earlier: Scorer | None = None,
) -> Verdict:
    """Let both policies answer prompts of ``heldout`` until it is decided which is better, and judge the candidate.

    Args:
        contenders: The policies.
        heldout: What people said about prompts that the candidate did not learn from.
        score: The scores that the candidate was trained to raise.
        settings: The limits of the gate, and the seed of prompts and answers.
        judge: Scores by the judge that decides who wins; None if ``score`` does.
        on_batch: Called before each batch of work; it may raise to stop.
        earlier: Scores by the reward version before the one of ``score``; None if there is none.

    Raises:
        RewardloopError: If answers were not scored.
    """
    limits, seed = settings.gate, settings.seed
    encoder = contenders.encoder
    max_new_tokens = min(limits.max_new_tokens, encoder.max_length // 2)
    prompts = _prompts(encoder, heldout, max_new_tokens, limits.prompts, seed)
    sampling = Sampling(limits.responses, max_new_tokens, seed)
    said: list[list[Rollout]] = []
    before: list[list[Rollout]] = []
    ours, theirs, judged, by_earlier = Scores(), Scores(), list[float](), list[float]()
    plan = plan_of(limits, len(prompts))
    for end in plan.ends if len(prompts) >= limits.least_prompts else ():
        places = range(len(said), end)
        part = prompts[len(said) : end]
        new, old = (
            roll_out(model, encoder, part, sampling, places=places, on_batch=on_batch)
            for model in (contenders.candidate, contenders.live)
        )
        texts = [[rollout.text for rollout in (*a, *b)] for a, b in zip(new, old, strict=True)]
        scores = score(part, texts)
        by_judge = scores if judge is None else judge(part, texts)
        said, before = [*said, *new], [*before, *old]
        ours += [group[: limits.responses] for group in scores]
        theirs += [group[limits.responses :] for group in scores]
        judged += _won(by_judge, limits.responses)
        if earlier is not None:
            by_earlier += _won(earlier(part, texts), limits.responses)
        if plan.look(np.array(judged)).decision != "open":
            break
    asked = prompts[: len(said)]
    verdict = judge_policy(
        _answered(said, ours, _log_ratios(contenders.live, said, encoder, settings.micro_batch_tokens)),
        _answered(before, theirs, repeat(0.0)),
        limits,
        judged=None if judge is None else judged,
        earlier=None if earlier is None else by_earlier,
        planned=len(prompts),
        **_drift(contenders, asked, said, heldout, sampling, settings),
    )
    examples = policy_examples(asked, _first(said, ours), _first(before, theirs), judged)
    return replace(verdict, examples=examples)


def _first(said: Sequence[Sequence[Rollout]], scores: Scores) -> list[tuple[str, float | None]]:
    """Return the first answer to each prompt with its score."""
    return [(group[0].text, scored[0]) for group, scored in zip(said, scores, strict=True)]


def _won(scores: Scores, responses: int) -> list[float]:
    """The share of each prompt's comparisons that the candidate won, whose responses come first."""
    return [win_share(group[:responses], group[responses:]) for group in scores]


class _Drift(TypedDict):
    fluency: Fluency | None
    anchor: FromAnchor | None


def _drift(
    contenders: Contenders,
    asked: Sequence[Prompt],
    said: Sequence[Sequence[Rollout]],
    heldout: Sequence[Record],
    sampling: Sampling,
    settings: PolicySettings,
) -> _Drift:
    """Measure the candidate against people's own texts and against the anchor, which is loaded for that alone."""
    limits, encoder = settings.gate, contenders.encoder
    texts = _approved_rows(encoder, heldout, limits.prompts, settings.seed)

    def nats(model: Any) -> float:
        return _nats_per_token(model, texts, encoder, settings.micro_batch_tokens)

    fluency = Fluency(nats(contenders.candidate), nats(contenders.live)) if texts else None
    if contenders.anchor is None or not asked:
        return {"fluency": fluency, "anchor": None}
    version, load = contenders.anchor
    anchor = load()
    ratios = _log_ratios(anchor, said, encoder, settings.micro_batch_tokens)
    answers = roll_out(anchor, encoder, asked, sampling)
    moved = FromAnchor(version, sum(ratios) / len(ratios), _answered(answers, _unscored(answers), repeat(0.0)))
    return {"fluency": replace(fluency, anchor=nats(anchor)) if fluency else None, "anchor": moved}


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
    rows = _approved_rows(encoder, heldout, most, seed)
    if not rows:
        return None
    return Fluency(*(_nats_per_token(model, rows, encoder, micro_batch_tokens) for model in (candidate, live)))


def _approved_rows(encoder: Encoder, heldout: Sequence[Record], most: int, seed: int) -> list[Completion]:
    approved = dict.fromkeys((record.prompt, text) for record in weighing(heldout) if (text := _approved(record)))
    encoded = [row for row in encode_completions(encoder, list(approved)) if row is not None]
    random.Random(seed).shuffle(encoded)
    return encoded[:most]


def _nats_per_token(model: Any, rows: Sequence[Completion], encoder: Encoder, micro_batch_tokens: int) -> float:
    logprobs = sequence_logprobs(model, rows, encoder.format.pad, micro_batch_tokens)
    return -float(logprobs.sum()) / sum(row.tokens for row in rows)


def _log_ratios(
    model: Any, said: Sequence[Sequence[Rollout]], encoder: Encoder, micro_batch_tokens: int
) -> list[float]:
    """Each answer's log-probability under the policy that gave it, less that under ``model``, in nats a response."""
    flat = [rollout for group in said for rollout in group]
    if not flat:
        return []
    logprobs = sequence_logprobs(model, [r.sequence for r in flat], encoder.format.pad, micro_batch_tokens)
    return [rollout.logprob - logprob for rollout, logprob in zip(flat, logprobs.tolist(), strict=True)]


def _approved(record: Record) -> str:
    """Return the text that the signal calls good, or "" if it calls none good."""
    match record:
        case Pair(chosen=text) | RankedList(responses=(text, *_)) | Labelled(response=text, label=1.0):
            return text
    return ""


def _prompts(encoder: Encoder, heldout: Sequence[Record], max_new_tokens: int, most: int, seed: int) -> list[Prompt]:
    distinct = list({prompt_key(record.prompt): record.prompt for record in heldout}.values())
    fitting = fitting_prompts(encoder, distinct, max_new_tokens)
    random.Random(seed).shuffle(fitting)
    return fitting[:most]


def _answered(said: Sequence[Sequence[Rollout]], scored: Scores, log_ratios: Iterable[float]) -> list[list[Answered]]:
    """Join answers, their scores and, in the answers' order, their log-ratios."""
    ratios = iter(log_ratios)

    def join(rollout: Rollout, score: float | None) -> Answered:
        return Answered(rollout.text, rollout.sequence.tokens, rollout.finish == "length", score, next(ratios))

    return [[join(*each) for each in zip(*group, strict=True)] for group in zip(said, scored, strict=True)]


def _unscored(said: Sequence[Sequence[Rollout]]) -> Scores:
    return [[None] * len(group) for group in said]
