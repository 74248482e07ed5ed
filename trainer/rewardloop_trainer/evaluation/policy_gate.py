"""Decides whether a trained policy may replace the live one, by what both say to held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rewardloop_trainer.clusters import ClusteredShare, as_share, clustered_mean
from rewardloop_trainer.evaluation.collapse import distinct_2, repeated_4
from rewardloop_trainer.evaluation.sequential import WinRatePlan
from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.policy.settings import PolicyGateLimits
from rewardloop_trainer.vocabulary import Reason, Rule

_ALPHA = 0.025  # on either side of an interval


@dataclass(frozen=True, slots=True)
class Answered:
    """One policy's answer to a held-out prompt.

    Attributes:
        text: The answer.
        tokens: Its length.
        is_truncated: Whether it ended because it was too long.
        score: Its calibrated score; None for an empty answer, which has none.
        log_ratio: Its log-probability under the policy that gave it, less that under the live policy, in nats a
            sequence; 0 for the live policy's own answers.
    """

    text: str
    tokens: int
    is_truncated: bool
    score: float | None
    log_ratio: float = 0.0

    @property
    def is_empty(self) -> bool:
        return not self.text.strip()


@dataclass(frozen=True, slots=True)
class Fluency:
    """How the policies predict people's own held-out texts, in nats a token.

    The costs of learning (the "alignment tax") show here first. ``anchor`` is NaN if the live policy is the anchor.
    """

    candidate: float
    live: float
    anchor: float = math.nan

    @property
    def perplexity_ratio(self) -> float:
        return float(np.exp(self.candidate - self.live))

    @property
    def anchor_perplexity_ratio(self) -> float:
        return float(np.exp(self.candidate - (self.live if math.isnan(self.anchor) else self.anchor)))


@dataclass(frozen=True, slots=True)
class FromAnchor:
    """How far the candidate has moved from the anchor policy, round after round.

    Attributes:
        version: The anchor's version.
        kl: Mean KL to it, in nats a response.
        answers: Its own answers to the prompts, one inner sequence a prompt.
    """

    version: str
    kl: float
    answers: Sequence[Sequence[Answered]]


def plan_of(limits: PolicyGateLimits, prompts: int) -> WinRatePlan:
    """Return how the gate decides on this many prompts."""
    return WinRatePlan(prompts, max(limits.least_win_rate, limits.least_win_rate_lower), limits.alpha)


def judge_policy(
    candidate: Sequence[Sequence[Answered]],
    live: Sequence[Sequence[Answered]],
    limits: PolicyGateLimits,
    *,
    judged: Sequence[float] | None = None,
    earlier: Sequence[float] | None = None,
    fluency: Fluency | None = None,
    planned: int | None = None,
    anchor: FromAnchor | None = None,
) -> Verdict:
    """Judge the candidate by the answers of both policies to the same prompts.

    The candidate passes if it is shown to win more often than not and nothing collapsed: its KL to the live policy, the
    length of its answers, the shares of empty and of endless ones, the variety of its word pairs, the phrases that it
    repeats, and its perplexity on people's own texts stay within the limits. KL, length, variety and perplexity are
    also compared with the anchor policy, because each round may use up the limits to the live one. The bounds of the
    win rate are those of `WinRatePlan`, one value a prompt, because the answers to one prompt share its difficulty.

    Args:
        candidate: The candidate's answers, one inner sequence a prompt, none of them empty.
        live: The live policy's answers to the same prompts.
        limits: What the candidate must keep to.
        judged: For each prompt, the share in [0, 1] that the candidate's answers won by a judge that the candidate did
            not learn from. If it is given, it decides; the scores, which the candidate was trained to raise, are then
            reported beside it.
        earlier: The same share by the reward version before the one that the candidate was trained by; None without
            one. What over-optimises a reward model uses that model's own errors, so that other versions see it fall.
        fluency: How both policies predict people's own texts; None if there are none, and perplexity is not judged.
        planned: How many prompts could have been asked, if a decision was reached before; None if all were asked.
        anchor: How far the candidate is from the anchor policy; None if that is the live one.

    Raises:
        ValueError: If the numbers of prompts differ.
    """
    if {len(each) for each in (candidate, judged, earlier) if each is not None} != {len(live)}:
        raise ValueError("both policies answer the same prompts, and a judge judges them all")
    planned = len(candidate) if planned is None else planned
    if planned < limits.least_prompts:
        text = f"needs {limits.least_prompts - planned} more held-out prompts to judge on (have {planned})"
        return Verdict(False, (Reason("no_data", text),), {"gate_prompts": float(planned)})
    wins = np.array([win_share(_scores(a), _scores(b)) for a, b in zip(candidate, live, strict=True)])
    said, before = [a for group in candidate for a in group], [a for group in live for a in group]
    look = plan_of(limits, planned).look(wins if judged is None else np.array(judged, dtype=float))
    figures = {
        "gate_prompts": float(len(wins)),
        "gate_planned_prompts": float(planned),
        "gate_win_rate": look.mean,
        "gate_win_rate_lower": look.lower,
        "gate_win_rate_upper": look.upper,
        **_interval("gate_score_win_rate", wins),
        **({} if earlier is None else _interval("gate_earlier_win_rate", np.array(earlier, dtype=float))),
        # The k1 estimate on the candidate's own samples is unbiased for KL(candidate || live).
        "gate_kl": _mean([a.log_ratio for a in said]),
        "gate_length_ratio": _mean([a.tokens for a in said]) / _mean([a.tokens for a in before]),
    }
    for name, answers in (("candidate", said), ("live", before)):
        scores = [a.score for a in answers if a.score is not None]
        figures |= {
            f"gate_{name}_reward": _mean(scores) if scores else 0.0,
            f"gate_{name}_tokens": _mean([a.tokens for a in answers]),
            f"gate_{name}_empty_share": _mean([a.is_empty for a in answers]),
            f"gate_{name}_truncated_share": _mean([a.is_truncated for a in answers]),
            f"gate_{name}_distinct_2": distinct_2([a.text for a in answers]),
            f"gate_{name}_repeated_4": repeated_4([a.text for a in answers]),
        }
    figures |= _anchor_figures(figures, said, anchor)
    if fluency is not None:
        figures |= {
            "gate_candidate_nats_per_token": fluency.candidate,
            "gate_live_nats_per_token": fluency.live,
            "gate_perplexity_ratio": fluency.perplexity_ratio,
            "gate_anchor_perplexity_ratio": fluency.anchor_perplexity_ratio,
        }
    reasons = (
        *_broken(figures, limits),
        *_disliked(figures),
        *_drifted(figures, limits, anchor.version if anchor else "the live one"),
    )
    return Verdict(not reasons, reasons, figures)


def _anchor_figures(
    figures: Mapping[str, float], said: Sequence[Answered], anchor: FromAnchor | None
) -> dict[str, float]:
    if anchor is None:
        return {
            "gate_anchor_kl": figures["gate_kl"],
            "gate_anchor_length_ratio": figures["gate_length_ratio"],
            "gate_anchor_distinct_2": figures["gate_live_distinct_2"],
        }
    before = [a for group in anchor.answers for a in group]
    return {
        "gate_anchor_kl": anchor.kl,
        "gate_anchor_length_ratio": _mean([a.tokens for a in said]) / _mean([a.tokens for a in before]),
        "gate_anchor_distinct_2": distinct_2([a.text for a in before]),
    }


def share_won(wins: npt.NDArray[np.float64]) -> ClusteredShare:
    """Return the win rate over prompts, of the share (prompts,) that the candidate won of each."""
    return as_share(clustered_mean(wins, np.ones(len(wins)), np.arange(len(wins))))


def is_liked_less(upper: float) -> bool:
    """Whether the reward version before refuses a candidate whose win rate by its scores is at most ``upper``.

    It does if that is below one half, and if it is not a number.
    """
    return not upper >= 0.5


def win_share(candidate: Sequence[float | None], live: Sequence[float | None]) -> float:
    """Return the share of the pairs of answers to one prompt that the candidate wins by score.

    A tie counts half. An empty answer, whose score is None, loses to any other and ties with another empty one.
    """
    a, b = (np.array([-np.inf if score is None else score for score in scores]) for scores in (candidate, live))
    above, equal = a[:, None] > b[None, :], a[:, None] == b[None, :]
    return float((above + 0.5 * equal).mean())


def _scores(answers: Sequence[Answered]) -> list[float | None]:
    return [answer.score for answer in answers]


def _interval(name: str, wins: npt.NDArray[np.float64]) -> dict[str, float]:
    found = share_won(wins)
    return {name: found.mean, f"{name}_lower": found.lower(_ALPHA), f"{name}_upper": found.upper(_ALPHA)}


def _broken(figures: Mapping[str, float], limits: PolicyGateLimits) -> list[Reason]:
    def of(name: str) -> float:
        return figures[f"gate_{name}"]

    rules: list[tuple[bool, Rule, str]] = [
        (
            of("win_rate") > limits.least_win_rate,
            "win_rate",
            f"win rate {of('win_rate'):.3f}, not above {limits.least_win_rate:g}",
        ),
        (
            of("win_rate_lower") > limits.least_win_rate_lower,
            "win_rate",
            f"win rate {of('win_rate'):.3f}, by its interval perhaps {of('win_rate_lower'):.3f}, not above "
            f"{limits.least_win_rate_lower:g}",
        ),
        (of("kl") <= limits.max_kl, "kl", f"KL to the live policy {of('kl'):.1f} nats, above {limits.max_kl:g}"),
        (
            limits.least_length_ratio <= of("length_ratio") <= limits.max_length_ratio,
            "length",
            f"answers {of('length_ratio'):.2f} times as long as the live policy's, outside "
            f"{limits.least_length_ratio:g} to {limits.max_length_ratio:g}",
        ),
        (
            of("candidate_empty_share") <= limits.max_empty_share,
            "empty_answers",
            f"share of empty answers {of('candidate_empty_share'):.3f}, above {limits.max_empty_share:g}",
        ),
        (
            of("candidate_truncated_share") <= of("live_truncated_share") + limits.max_more_truncated,
            "endless_answers",
            f"share of answers without an end {of('candidate_truncated_share'):.3f}, live "
            f"{of('live_truncated_share'):.3f}",
        ),
        (
            of("candidate_distinct_2") >= limits.least_distinct_ratio * of("live_distinct_2"),
            "distinct",
            f"distinct-2 {of('candidate_distinct_2'):.3f}, live {of('live_distinct_2'):.3f}",
        ),
        (
            of("candidate_repeated_4") <= of("live_repeated_4") + limits.max_more_repeated,
            "repetition",
            f"share of repeated phrases {of('candidate_repeated_4'):.3f}, live {of('live_repeated_4'):.3f}",
        ),
    ]
    if "gate_perplexity_ratio" in figures:
        rules.append(
            (
                of("perplexity_ratio") <= limits.max_perplexity_ratio,
                "perplexity",
                f"perplexity of held-out texts {of('perplexity_ratio'):.2f} times the live policy's, above "
                f"{limits.max_perplexity_ratio:g}",
            )
        )
    # A figure that is NaN breaks its rule, because no comparison with NaN is true.
    return [Reason(rule, text) for is_kept, rule, text in rules if not is_kept]


def _disliked(figures: Mapping[str, float]) -> list[Reason]:
    """Return why the reward version before refuses the candidate, if it judged and is shown to like it less."""
    if not is_liked_less(figures.get("gate_earlier_win_rate_upper", 0.5)):
        return []
    text = (
        f"the reward version before prefers the live policy: win rate {figures['gate_earlier_win_rate']:.3f}, by its "
        f"interval at most {figures['gate_earlier_win_rate_upper']:.3f}"
    )
    return [Reason("earlier_version", text)]


def _drifted(figures: Mapping[str, float], limits: PolicyGateLimits, anchor: str) -> list[Reason]:
    """Return which limits to the anchor policy, which hold over all rounds together, are exceeded."""

    def of(name: str) -> float:
        return figures[f"gate_{name}"]

    rules = [
        (
            of("anchor_kl") <= limits.max_anchor_kl,
            f"KL {of('anchor_kl'):.1f} nats a response, above {limits.max_anchor_kl:g}",
        ),
        (
            limits.least_length_ratio <= of("anchor_length_ratio") <= limits.max_length_ratio,
            f"answers {of('anchor_length_ratio'):.2f} times as long, outside {limits.least_length_ratio:g} to "
            f"{limits.max_length_ratio:g}",
        ),
        (
            of("candidate_distinct_2") >= limits.least_distinct_ratio * of("anchor_distinct_2"),
            f"distinct-2 {of('candidate_distinct_2'):.3f}, the anchor's {of('anchor_distinct_2'):.3f}",
        ),
        (
            figures.get("gate_anchor_perplexity_ratio", 1.0) <= limits.max_perplexity_ratio,
            f"perplexity {figures.get('gate_anchor_perplexity_ratio', 1.0):.2f} times the anchor's, above "
            f"{limits.max_perplexity_ratio:g}",
        ),
    ]
    way = "the budget of all rounds since then is used up; --policy.gate.anchor N begins a new one from version N"
    return [
        Reason("anchor", f"too far from the anchor policy, {anchor}: {text}; {way}") for kept, text in rules if not kept
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
