"""Whether a trained reward model may replace the live one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rewardloop_trainer.export import PARITY_TOLERANCE
from rewardloop_trainer.preferences import Pair
from rewardloop_trainer.reasons import Reason
from rewardloop_trainer.reward_evaluate import Floats, correctness

_CHUNK = 4_000_000  # counts of one block of resamples


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its two-sided 95% bootstrap bounds."""

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class GateOutcome:
    """``reasons``: one line for each rule that was broken; empty when it passed. ``figures``: for the manifest."""

    passed: bool
    reasons: tuple[str, ...]
    figures: Mapping[str, float]


def gate(
    pairs: Sequence[Pair],
    candidate: Floats,
    live: Floats | None,
    parity: float,
    *,
    tolerance: float = 0.02,
    resamples: int = 10_000,
    seed: int = 0,
) -> GateOutcome:
    """Judge a candidate on held-out pairs; it passes when all of these hold:

    1. parity, the largest difference of its ONNX logits from torch's, is at most 1e-4;
    2. every margin is finite;
    3. it is no worse than the live version beyond noise: its accuracy is at least the live one's, or the lower bound
       of the 95% interval of (candidate - live) is at least -``tolerance``. The interval is a paired bootstrap over
       prompts, not pairs, because the pairs of a prompt share its difficulty.

    A small data set makes rule 3 stricter for a candidate that looks worse, not looser: a wide interval ends below
    -tolerance. Without a live version or without held-out pairs there is nothing to compare, and rule 3 holds.

    candidate, live: logit of chosen less that of rejected on ``pairs``, (pairs,). Raises ValueError on other lengths.
    """
    if len(candidate) != len(pairs) or (live is not None and len(live) != len(pairs)):
        raise ValueError("margins and pairs differ in number")
    figures = {"gate_pairs": float(len(pairs)), "gate_tolerance": tolerance}
    reasons: list[Reason] = []
    if np.isfinite(parity):
        figures["gate_parity"] = parity
    if not parity <= PARITY_TOLERANCE:
        reasons.append(Reason("parity", f"ONNX logits differ from torch by {parity:.3g}, above {PARITY_TOLERANCE:g}"))
    if not np.isfinite(candidate).all():
        unusable = int((~np.isfinite(candidate)).sum())
        reasons.append(Reason("not_finite", f"{unusable} of {len(candidate)} margins are not finite"))
    elif len(pairs):
        figures["gate_candidate_accuracy"] = float(correctness(candidate).mean())
        if live is not None:
            difference = accuracy_difference(pairs, candidate, live, resamples, seed)
            figures |= {
                "gate_live_accuracy": float(correctness(live).mean()),
                "gate_accuracy_difference": difference.estimate,
                "gate_accuracy_difference_lower": difference.lower,
                "gate_accuracy_difference_upper": difference.upper,
                "gate_prompts": float(len({p.prompt for p in pairs})),
            }
            if difference.estimate < 0 and difference.lower < -tolerance:
                text = (
                    f"held-out accuracy {figures['gate_candidate_accuracy']:.3f} is below the live version's "
                    f"{figures['gate_live_accuracy']:.3f}, and the 95% interval of the difference "
                    f"[{difference.lower:+.3f}, {difference.upper:+.3f}] allows more than {tolerance:g}"
                )
                reasons.append(Reason("accuracy", text))
    return GateOutcome(not reasons, tuple(reasons), figures)


def accuracy_difference(
    pairs: Sequence[Pair], candidate: Floats, live: Floats, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Accuracy of candidate less that of live on the same pairs (at least one), resampled by prompt."""
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys(p.prompt for p in pairs))}
    prompt_of = np.array([places[p.prompt] for p in pairs])
    gains = correctness(candidate) - correctness(live)
    gained = np.bincount(prompt_of, weights=gains, minlength=len(places)).astype(np.float64)
    sizes = np.bincount(prompt_of, minlength=len(places)).astype(np.float64)
    estimate = float(gained.sum() / sizes.sum())
    resampled = _resampled_ratios(gained, sizes, resamples, np.random.default_rng(seed))
    lower, upper = np.quantile(resampled, (0.025, 0.975))
    return Interval(estimate, float(lower), float(upper))


def _resampled_ratios(
    totals: Floats, sizes: Floats, resamples: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """sum(totals) / sum(sizes) over clusters drawn with replacement, (resamples,)."""
    clusters = len(totals)
    shares = np.full(clusters, 1 / clusters)
    ratios = []
    rows = max(1, _CHUNK // clusters)
    for start in range(0, resamples, rows):
        drawn = generator.multinomial(clusters, shares, size=min(rows, resamples - start))
        ratios.append((drawn @ totals) / (drawn @ sizes))
    return np.concatenate(ratios)
