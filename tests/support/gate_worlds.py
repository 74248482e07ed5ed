"""Made-up candidates of known worth, and how often each gate lets them pass: the gates' operating characteristics.

Everything is drawn from a seed. The gates are called as the rounds call them; nothing of them is copied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Labelled, Pair
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, Statements
from rewardloop_trainer.evaluation.reward_gate import RewardGateRules, judge_reward

Floats = npt.NDArray[np.float64]

# Differences between the two answers to a prompt, in nats: a model that knew them would be right 73% of the time.
_TASTE = 1.5
LIVE_ACCURACY = 0.65
_PAIR = Pair((Turn("user", "?"),), "a", "b")
_GRADED = Labelled((Turn("user", "?"),), "a", 1.0)


@cache
def noise_of(accuracy: float) -> float:
    """The deviation of a reward model's error, in nats, that gives this accuracy."""
    grid = np.linspace(-6, 6, 2001)
    density = np.exp(-(grid**2) / 2)
    utility, density = _TASTE * grid, density / density.sum()
    likes = 1 / (1 + np.exp(-utility))

    def accuracy_of(noise: float) -> float:
        says = _normal_cdf(utility / noise)
        return float(density @ (says * likes + (1 - says) * (1 - likes)))

    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if accuracy_of(middle) > accuracy else (low, middle)
    return (low * high) ** 0.5


def _normal_cdf(x: Floats) -> Floats:
    from math import erf

    return np.array([0.5 * (1 + erf(v / 2**0.5)) for v in x])


@dataclass(frozen=True, slots=True)
class Judged:
    """What people said about ``n`` prompts, of some of which more than one pair was judged."""

    utility: Floats
    evidence: Evidence

    @classmethod
    def drawn(cls, prompts: int, rng: np.random.Generator) -> Judged:
        of = np.repeat(np.arange(prompts), rng.choice([1, 2], size=prompts, p=[0.8, 0.2]))
        utility = _TASTE * (0.5**0.5 * rng.normal(size=prompts)[of] + 0.5**0.5 * rng.normal(size=len(of)))
        likes = rng.random(len(of)) < 1 / (1 + np.exp(-utility))
        signed = np.where(likes, utility, -utility)
        said = Statements(np.ones(len(of)), np.ones(len(of)), of.astype(np.int64))
        return cls(signed, evidence(said, nothing()))


def nothing() -> Statements:
    return Statements(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))


def evidence(comparisons: Statements, grades: Statements) -> Evidence:
    """Evidence of texts that do not matter."""
    pairs, graded = len(comparisons), len(grades)
    keys = [str(i) for i in range(pairs + graded)]
    return Evidence(
        (_PAIR,) * pairs, comparisons, (_GRADED,) * graded, grades, tuple(keys[:pairs]), tuple(keys[pairs:])
    )


def readings(margins: Floats, logits: Floats | None = None) -> Readings:
    return Readings(margins, np.zeros(0) if logits is None else logits)


def rivals(utility: Floats, accuracies: Sequence[float], alike: float, rng: np.random.Generator) -> list[Floats]:
    """Margins of models with these accuracies, whose errors correlate by ``alike`` with those of the first one."""
    first = rng.normal(size=len(utility))
    errors = [first] + [alike * first + (1 - alike**2) ** 0.5 * rng.normal(size=len(utility)) for _ in accuracies[1:]]
    return [utility + noise_of(accuracy) * error for accuracy, error in zip(accuracies, errors, strict=True)]


def reward_pass_rate(
    prompts: int, difference: float, runs: int, seed: int, alike: float = 0.9, rules: RewardGateRules | None = None
) -> float:
    """How often the reward gate lets a candidate pass whose accuracy differs from the live one's by ``difference``."""
    rng = np.random.default_rng((seed, prompts, round(1000 * (difference + 1))))
    passed = 0
    for _ in range(runs):
        judged = Judged.drawn(prompts, rng)
        live, candidate = rivals(judged.utility, (LIVE_ACCURACY, LIVE_ACCURACY + difference), alike, rng)
        verdict = judge_reward(judged.evidence, readings(candidate), readings(live), 0.0, rules)
        passed += verdict.passed
    return passed / runs
