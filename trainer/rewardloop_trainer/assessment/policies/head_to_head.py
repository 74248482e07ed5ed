"""One policy against another: win rates by named judges, and with answers of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rewardloop_trainer.assessment.judges import Verdicts, judged
from rewardloop_trainer.assessment.measures import share_of
from rewardloop_trainer.assessment.policies.length_controlled import LengthControlled, length_controlled
from rewardloop_trainer.clusters import ClusteredMean, Ints
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.judge import Duel, Judge
from rewardloop_trainer.reward.evaluate import Floats


@dataclass(frozen=True, slots=True)
class Answers:
    """What a policy said.

    Attributes:
        name: The policy.
        texts: Its answers to each prompt, at least one.
        lengths: The length of each answer, in tokens, or in characters if the policy's tokens are not known.
    """

    name: str
    texts: Sequence[Sequence[str]]
    lengths: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class HeadToHead:
    """How the first policy fares against the second, by one judge.

    Attributes:
        judge: The judge's name.
        win_rate: The share that the first policy wins, ties counted half, over prompts.
        controlled: The same at like lengths.
        shares: (prompts,), what the first policy won of each; NaN if the judge had no verdict.
        consistent: How often both orders have one winner; 1 for a judge that reads each answer alone.
        first_wins: How often the answer shown first wins: 1/2 for such a judge.
        unjudged: Comparisons without a verdict.
    """

    judge: str
    win_rate: ClusteredMean
    controlled: LengthControlled
    shares: Floats
    consistent: float
    first_wins: float
    unjudged: int


def head_to_head(prompts: Sequence[Prompt], ours: Answers, theirs: Answers, judge: Judge) -> HeadToHead:
    """Let a judge compare the answers of two policies to the same prompts.

    Every answer of the one meets every answer of the other. For the length-controlled rate each policy's answers meet
    its own other ones as well, if it gave several.

    Raises:
        ValueError: If the numbers of prompts differ, or as `judges.judged` does.
    """
    if not len(prompts) == len(ours.texts) == len(theirs.texts):
        raise ValueError("both policies answer the same prompts")
    between = _between(prompts, ours, theirs)
    own = [*_within(prompts, ours), *_within(prompts, theirs)]
    rows = [*between, *own]
    found = judged(judge, [row.duel for row in rows])
    places = np.array([row.prompt for row in rows], dtype=np.int64)
    is_between = np.array([1.0] * len(between) + [0.0] * len(own))
    lengths = np.array([row.lengths for row in rows], dtype=np.float64)
    has_verdict = np.isfinite(found.shares)
    controlled = length_controlled(
        found.shares[has_verdict], lengths[has_verdict], is_between[has_verdict], places[has_verdict]
    )
    shares = _by_prompt(found, places, is_between, len(prompts))
    known = np.isfinite(shares)
    return HeadToHead(
        judge.name,
        share_of(shares[known], np.flatnonzero(known)),
        controlled,
        shares,
        found.consistent,
        found.first_wins,
        found.unjudged,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """A duel, the number of its prompt, and the lengths of both answers."""

    duel: Duel
    prompt: int
    lengths: tuple[int, int]


def _between(prompts: Sequence[Prompt], ours: Answers, theirs: Answers) -> list[_Row]:
    return [
        _Row(Duel(prompt, a, b), i, (ours.lengths[i][m], theirs.lengths[i][n]))
        for i, prompt in enumerate(prompts)
        for m, a in enumerate(ours.texts[i])
        for n, b in enumerate(theirs.texts[i])
    ]


def _within(prompts: Sequence[Prompt], said: Answers) -> list[_Row]:
    return [
        _Row(Duel(prompt, said.texts[i][m], said.texts[i][n]), i, (said.lengths[i][m], said.lengths[i][n]))
        for i, prompt in enumerate(prompts)
        for m, n in combinations(range(len(said.texts[i])), 2)
        if said.texts[i][m] != said.texts[i][n]
    ]


def _by_prompt(found: Verdicts, places: Ints, is_between: Floats, prompts: int) -> Floats:
    """The mean share of each prompt's comparisons of the two policies, NaN without a verdict, (prompts,)."""
    kept = (is_between == 1) & np.isfinite(found.shares)
    sums = np.bincount(places[kept], weights=found.shares[kept], minlength=prompts)
    counts = np.bincount(places[kept], minlength=prompts)
    with np.errstate(invalid="ignore"):
        shares: Floats = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return shares
