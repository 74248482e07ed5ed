"""Decides whether a trained reward model may replace the live one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from rewardloop_trainer.clusters import (
    ClusteredAuc,
    ClusteredMean,
    ClusteredShare,
    as_difference,
    as_share,
    clustered_auc,
    clustered_mean,
)
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, at_random, joined
from rewardloop_trainer.evaluation.likelihood import (
    best_slope,
    calibration_error,
    comparison_losses,
    cross_entropy,
    grade_losses,
)
from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.export.parity import PARITY_TOLERANCE
from rewardloop_trainer.reward.evaluate import correctness
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.vocabulary import Reason

_CHANCE_LOSS = math.log(2)


@dataclass(frozen=True, slots=True)
class RewardGateRules:
    """What a candidate must show.

    Attributes:
        least_prompts: The effective number of independent held-out prompts below which nothing is decided.
        alpha: The probability with which a candidate that is no better than the live version may pass.
        margin: The loss of log-likelihood, in nats a statement, that is accepted. 0 asks for a gain.
        tolerance: The loss of accuracy in the sample that is accepted beside a gain in likelihood.
    """

    least_prompts: float = 50.0
    alpha: float = 0.04
    margin: float = 0.0
    tolerance: float = 0.02

    @classmethod
    def of(cls, settings: RewardHyperparameters) -> Self:
        """Return the rules that the settings name."""
        return cls(settings.gate_prompts, settings.gate_alpha, settings.gate_margin, settings.gate_tolerance)


@dataclass(frozen=True, slots=True)
class Contest:
    """The candidate and another version on the same evidence."""

    evidence: Evidence
    candidate: Readings
    other: Readings

    def gain(self) -> ClusteredMean:
        """By how much likelier the candidate makes a statement than the other version, in nats."""
        return self.gains()[0]

    def gains(self) -> tuple[ClusteredMean, ClusteredMean, ClusteredMean]:
        """The gain over all statements, over comparisons alone, and over thumbs and ratings alone."""
        said, graded = self.evidence.comparisons, self.evidence.grades
        ours, theirs = (
            (
                comparison_losses(each.margins, said.targets, said.weights),
                grade_losses(each.logits, graded.targets, graded.weights),
            )
            for each in (self.candidate, self.other)
        )
        of_pairs, of_grades = theirs[0] - ours[0], theirs[1] - ours[1]
        both = joined(said, graded)
        return (
            clustered_mean(np.concatenate([of_pairs, of_grades]), both.weights, both.clusters),
            clustered_mean(of_pairs, said.weights, said.clusters),
            clustered_mean(of_grades, graded.weights, graded.clusters),
        )


def judge_reward(
    evidence: Evidence,
    candidate: Readings,
    live: Readings | None,
    parity: float,
    rules: RewardGateRules | None = None,
    best: Contest | None = None,
) -> Verdict:
    """Judge a candidate on held-out signals. It passes if all of these hold:

    1. Parity is at most 1e-4, and every logit is finite.
    2. There is enough evidence: ``least_prompts`` independent prompts.
    3. It makes what people said likelier than the live version does, by a one-sided test at level ``alpha`` over
       prompts, because the statements of a prompt share its difficulty. With a ``margin`` it may be worse by less than
       that. Without a live version, it must order comparisons better than chance, or tell good answers from bad ones.
    4. It is not worse than the best version so far on the anchor set, which stays the same for all versions. Otherwise
       each version could be a little worse than the one before it.
    5. Neither comparisons alone nor thumbs and ratings alone show a loss, and accuracy is not lower by more than the
       tolerance.
    6. Its log-likelihood of strict choices, at its own scale, is no worse than that of a coin or of the live version.

    Args:
        evidence: The held-out statements.
        candidate: The candidate's readings of them.
        live: The live version's; None if there is no live version.
        parity: The largest difference between the candidate's logits in ONNX and in torch.
        rules: What the candidate must show; the defaults if None.
        best: The candidate against the best version so far on the anchor set; None if there is none.

    Raises:
        ValueError: If readings and statements differ in number.
    """
    rules = rules or RewardGateRules()
    for each in (candidate, live):
        if each is not None and (len(each.margins), len(each.logits)) != (len(evidence.pairs), len(evidence.graded)):
            raise ValueError("readings and statements differ in number")
    figures = evidence_figures(evidence, rules.least_prompts) | {"gate_tolerance": rules.tolerance}
    reasons: list[Reason] = []
    if np.isfinite(parity):
        figures["gate_parity"] = parity
    if not parity <= PARITY_TOLERANCE:
        reasons.append(Reason("parity", f"ONNX logits differ from torch by {parity:.3g}, above {PARITY_TOLERANCE:g}"))
    if candidate.unusable:
        of = len(evidence.pairs) + len(evidence.graded)
        reasons.append(Reason("not_finite", f"{candidate.unusable} of {of} margins and logits are not finite"))
        return Verdict(False, tuple(reasons), figures)
    if live is not None and live.unusable:
        live = None  # nothing can be worse
    figures |= model_figures("candidate", evidence, candidate)
    if live is not None:
        figures |= model_figures("live", evidence, live) | _accuracy_difference(evidence, candidate, live)
    if needed := figures["gate_needed"]:
        reasons.append(too_little(needed, figures["gate_evidence"]))
    elif live is None:
        reasons += beats_chance(evidence, candidate, rules)
    else:
        figures |= _gains(Contest(evidence, candidate, live), rules.alpha)
        reasons += _losses_to_live(figures, rules)
    if best is not None:
        gain = best.gain()
        figures["gate_anchor_prompts"] = best.evidence.prompts
        figures["gate_best_gain"] = gain.mean
        shown = gain.lower(rules.alpha) if rules.margin else gain.mean
        if not needed and not shown >= -rules.margin:
            text = (
                f"on the anchor set it makes statements {-gain.mean:.4f} nats less likely than the best version so far"
            )
            reasons.append(Reason("best_so_far", text if shown < 0 else "the anchor set shows nothing"))
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    return Verdict(not reasons, tuple(reasons), figures)


def evidence_figures(evidence: Evidence, least_prompts: float) -> dict[str, float]:
    """How much evidence there is, and how many more prompts a decision needs."""
    clusters = joined(evidence.comparisons, evidence.grades).clusters
    return {
        "gate_pairs": float(len(evidence.pairs)),
        "gate_thumbs": float(len(evidence.graded)),
        "gate_prompts": float(len(np.unique(clusters))),
        "gate_evidence": evidence.prompts,
        "gate_needed": float(max(0, math.ceil(least_prompts - evidence.prompts - 1e-9))),
    }


def too_little(needed: float, have: float) -> Reason:
    """The reason of a gate that has too little to decide on."""
    return Reason(
        "evidence",
        f"needs {needed:.0f} more held-out prompts with a choice, thumb or rating (have {have:.0f} that count)",
    )


def beats_chance(evidence: Evidence, model: Readings, rules: RewardGateRules) -> list[Reason]:
    """Return why the model is not shown to agree with people, by comparisons or by grades; empty if it is shown."""
    shown = {name: mean for name, mean in agreement(evidence, model).items() if mean.clusters >= rules.least_prompts}
    reasons = [
        _no_better_than_chance(name, mean, rules.alpha)
        for name, mean in shown.items()
        if not mean.lower(rules.alpha) > 0.5
    ]
    # By Student's t alone: the farther bound of a share would make this veto rarer.
    is_contradicted = any(ClusteredMean.upper(mean, rules.alpha) < 0.5 for mean in shown.values())
    if shown and len(reasons) < len(shown) and not is_contradicted:
        return []
    if reasons:
        return reasons
    have = max((mean.clusters for mean in agreement(evidence, model).values()), default=0.0)
    return [too_little(math.ceil(rules.least_prompts - have), have)]


def _no_better_than_chance(name: str, found: ClusteredShare, alpha: float) -> Reason:
    """The reason of a share that is not shown to be above one half, or that says nothing about others."""
    if isinstance(found, ClusteredAuc):
        if math.isinf(found.error):
            text = "needs two held-out prompts with liked answers and two with disliked ones"
            return Reason("evidence", f"{name}: {text} (have {found.rarer:.0f} of the rarer kind)")
        name = f"{name} ({found.rarer:.0f} prompts of the rarer kind)"
    text = f"{name} {found.mean:.3f}, by its interval perhaps {found.lower(alpha):.3f}, is chance"
    return Reason("accuracy", text)


def agreement(evidence: Evidence, model: Readings) -> dict[str, ClusteredShare]:
    """How often the model agrees with people: accuracy of choices, and AUC of thumbs and ratings; 1/2 is chance."""
    strict, grades = evidence.comparisons.targets == 1.0, evidence.grades
    comparisons, decided = evidence.comparisons.where(strict), grades.targets != 0.5
    opinions = grades.where(decided)
    return {
        "held-out accuracy": as_share(
            clustered_mean(correctness(model.margins[strict]), comparisons.weights, comparisons.clusters)
        ),
        "AUC of held-out thumbs and ratings": clustered_auc(
            model.logits[decided], opinions.targets > 0.5, opinions.weights, opinions.clusters
        ),
    }


def model_figures(side: str, evidence: Evidence, readings: Readings) -> dict[str, float]:
    """What the model is worth on the evidence: accuracy, also as if pairs were random, likelihood, calibration, AUC."""
    strict = evidence.comparisons.targets == 1.0
    weights, margins = evidence.comparisons.weights[strict], readings.margins[strict]
    accuracy, auc = agreement(evidence, readings).values()
    figures = {
        f"gate_{side}_accuracy": accuracy.mean,
        f"gate_{side}_auc": auc.mean,
        f"gate_{side}_auc_lower": auc.lower(0.025),
        f"gate_{side}_auc_upper": auc.upper(0.025),
    }
    if len(margins):
        ones = np.ones(len(margins))
        figures |= {
            f"gate_{side}_loss": float(weights @ cross_entropy(margins, ones)) / float(weights.sum()),
            f"gate_{side}_slope": best_slope(margins, ones, weights),
            f"gate_{side}_calibration_error": calibration_error(margins, weights),
        }
    pairs = [pair for pair, kept in zip(evidence.pairs, strict, strict=True) if kept]
    if (random := at_random(pairs, margins, weights, evidence.comparisons.clusters[strict])) is not None:
        figures |= {
            f"gate_{side}_random_accuracy": random.accuracy.mean,
            f"gate_{side}_random_accuracy_lower": random.accuracy.lower(0.025),
            f"gate_{side}_random_accuracy_upper": random.accuracy.upper(0.025),
            f"gate_{side}_random_choices": random.effective,
        }
    if side == "candidate" and len(margins):
        longer = [len(pair.chosen) - len(pair.rejected) for pair in pairs]
        figures["gate_length_baseline"] = float(weights @ correctness(np.sign(longer))) / float(weights.sum())
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _accuracy_difference(evidence: Evidence, candidate: Readings, live: Readings) -> dict[str, float]:
    strict = evidence.comparisons.targets == 1.0
    said = evidence.comparisons.where(strict)
    gains = correctness(candidate.margins[strict]) - correctness(live.margins[strict])
    mean = as_difference(clustered_mean(gains, said.weights, said.clusters))
    bounds = {"": mean.mean, "_lower": mean.lower(0.025), "_upper": mean.upper(0.025)}
    return {f"gate_accuracy_difference{name}": value for name, value in bounds.items() if math.isfinite(value)}


def _gains(contest: Contest, alpha: float) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, mean in zip(("gate_gain", "gate_choice_gain", "gate_thumb_gain"), contest.gains(), strict=True):
        figures |= {name: mean.mean, f"{name}_lower": mean.lower(alpha), f"{name}_upper": mean.upper(alpha)}
    return figures


def _losses_to_live(figures: Mapping[str, float], rules: RewardGateRules) -> list[Reason]:
    reasons: list[Reason] = []
    gain, lower = figures["gate_gain"], figures["gate_gain_lower"]
    if not lower > -rules.margin:
        text = f"held-out statements are {gain:+.4f} nats likelier under it than under the live version"
        reasons.append(
            Reason("likelihood", f"{text}, by the interval perhaps {lower:+.4f}: not above {-rules.margin:g}")
        )
    for name, kind in (("gate_choice_gain", "comparisons"), ("gate_thumb_gain", "thumbs and ratings")):
        if figures[f"{name}_upper"] < -rules.margin:
            text = f"it makes held-out {kind} {figures[name]:+.4f} nats likelier than the live version: a loss"
            reasons.append(Reason("likelihood", text))
    if figures.get("gate_accuracy_difference", 0.0) < -rules.tolerance:
        reasons.append(
            Reason(
                "accuracy",
                f"held-out accuracy {figures['gate_candidate_accuracy']:.3f} is below the live version's "
                f"{figures['gate_live_accuracy']:.3f} by more than {rules.tolerance:g}",
            )
        )
    loss = figures.get("gate_candidate_loss", 0.0)
    if loss > max(_CHANCE_LOSS, figures.get("gate_live_loss", 0.0)):
        text = f"held-out loss {loss:.3f} nats a choice is above a coin's, {_CHANCE_LOSS:.3f}, and the live version's"
        reasons.append(Reason("calibration", text))
    return reasons
