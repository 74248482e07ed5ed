"""Decides whether a trained reward model may replace the live one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.export.parity import PARITY_TOLERANCE
from rewardloop_trainer.reward.evaluate import Floats, accuracy_difference, correctness
from rewardloop_trainer.vocabulary import Reason


def judge_reward(
    pairs: Sequence[Pair],
    candidate: Floats,
    live: Floats | None,
    parity: float,
    *,
    tolerance: float = 0.02,
    resamples: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """Judge a candidate on held-out pairs. It passes if all of these hold:

    1. Parity is at most 1e-4.
    2. Every margin is finite.
    3. It is no worse than the live version beyond noise: its accuracy is at least the live one's, or the lower bound
       of the 95% interval of (candidate - live) is at least -``tolerance``. The interval is a paired bootstrap over
       prompts, not pairs, because the pairs of a prompt share its difficulty.

    A small data set makes rule 3 stricter for a candidate that looks worse, not looser, because a wide interval ends
    below -tolerance. Without a live version or without held-out pairs there is nothing to compare, and rule 3 holds.

    Args:
        pairs: The held-out pairs.
        candidate: The candidate's margins, (pairs,): the logit of the chosen response less that of the rejected one.
        live: The live version's margins, (pairs,); None if there is no live version.
        parity: The largest difference between the candidate's logits in ONNX and in torch.
        tolerance: The loss of accuracy that the interval may reach down to.
        resamples: How many samples the bootstrap draws.
        seed: The seed of the bootstrap.

    Raises:
        ValueError: If margins and pairs differ in number.
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
    return Verdict(not reasons, tuple(reasons), figures)
