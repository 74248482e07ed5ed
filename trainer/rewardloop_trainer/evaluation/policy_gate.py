"""Decides whether a trained policy may replace the live one, by what both say to held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.policy.settings import PolicyGateLimits
from rewardloop_trainer.vocabulary import Reason, Rule

_RESAMPLES = 10_000
_WORDS = 4


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
    """How both policies predict people's own held-out texts, in nats a token.

    The costs of learning (the "alignment tax") show here first.
    """

    candidate: float
    live: float

    @property
    def perplexity_ratio(self) -> float:
        return float(np.exp(self.candidate - self.live))


def judge_policy(
    candidate: Sequence[Sequence[Answered]],
    live: Sequence[Sequence[Answered]],
    limits: PolicyGateLimits,
    seed: int = 0,
    *,
    judged: Sequence[float] | None = None,
    fluency: Fluency | None = None,
) -> Verdict:
    """Judge the candidate by the answers of both policies to the same prompts.

    The candidate passes if it wins often enough and nothing collapsed: its KL to the live policy, the length of its
    answers, the shares of empty and of endless ones, the variety of its word pairs, the phrases that it repeats, and
    its perplexity on people's own texts stay within the limits. Without prompts it does not pass. The 95% intervals of
    win rates are bootstraps over prompts, because the answers to one prompt share its difficulty.

    Args:
        candidate: The candidate's answers, one inner sequence a prompt, none of them empty.
        live: The live policy's answers to the same prompts.
        limits: What the candidate must keep to.
        seed: The seed of the bootstrap.
        judged: For each prompt, the share in [0, 1] that the candidate's answers won by a judge that the candidate did
            not learn from. If it is given, it decides; the scores, which the candidate was trained to raise, are then
            reported beside it.
        fluency: How both policies predict people's own texts; None if there are none, and perplexity is not judged.

    Raises:
        ValueError: If the numbers of prompts differ.
    """
    if len(candidate) != len(live) or (judged is not None and len(judged) != len(live)):
        raise ValueError("both policies answer the same prompts, and a judge judges them all")
    if not candidate:
        return Verdict(False, (Reason("no_data", "no held-out prompt to judge on"),), {"gate_prompts": 0.0})
    wins = np.array([win_share(_scores(a), _scores(b)) for a, b in zip(candidate, live, strict=True)])
    said, before = [a for group in candidate for a in group], [a for group in live for a in group]
    figures = {
        "gate_prompts": float(len(wins)),
        **_interval("gate_win_rate", wins if judged is None else np.array(judged, dtype=float), seed),
        **_interval("gate_score_win_rate", wins, seed),
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
    if fluency is not None:
        figures |= {
            "gate_candidate_nats_per_token": fluency.candidate,
            "gate_live_nats_per_token": fluency.live,
            "gate_perplexity_ratio": fluency.perplexity_ratio,
        }
    reasons = tuple(_broken(figures, limits))
    return Verdict(not reasons, reasons, figures)


def bootstrap_interval(values: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return 95% bounds of the mean of ``values`` (n,), which are resampled with replacement."""
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    lower, upper = np.quantile(counts @ values / n, (0.025, 0.975))
    return float(lower), float(upper)


def distinct_2(texts: Sequence[str]) -> float:
    """Return the share of distinct pairs among all pairs of neighbouring words (Li et al. 2016); 0 without a pair."""
    pairs = [pair for text in texts for words in [text.split()] for pair in pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def repeated_4(texts: Sequence[str]) -> float:
    """Return the share of the runs of four words that occur earlier in the same text; 0 without such a run."""
    runs, repeated = 0, 0
    for text in texts:
        words = text.split()
        said = list(zip(*(words[i:] for i in range(_WORDS)), strict=False))
        runs += len(said)
        repeated += len(said) - len(set(said))
    return repeated / runs if runs else 0.0


def win_share(candidate: Sequence[float | None], live: Sequence[float | None]) -> float:
    """Return the share of the pairs of answers to one prompt that the candidate wins by score.

    A tie counts half. An empty answer, whose score is None, loses to any other and ties with another empty one.
    """
    a, b = (np.array([-np.inf if score is None else score for score in scores]) for scores in (candidate, live))
    above, equal = a[:, None] > b[None, :], a[:, None] == b[None, :]
    return float((above + 0.5 * equal).mean())


def _scores(answers: Sequence[Answered]) -> list[float | None]:
    return [answer.score for answer in answers]


def _interval(name: str, wins: npt.NDArray[np.float64], seed: int) -> dict[str, float]:
    lower, upper = bootstrap_interval(wins, seed)
    return {name: float(wins.mean()), f"{name}_lower": lower, f"{name}_upper": upper}


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
            of("win_rate_lower") >= limits.least_win_rate_lower,
            "win_rate",
            f"win rate {of('win_rate'):.3f}, by its 95% interval perhaps {of('win_rate_lower'):.3f}, below "
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


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
