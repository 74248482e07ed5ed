"""Whether a trained policy may replace the live one: judged on what both say to held-out prompts."""

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
    """One policy's answer to a held-out prompt. ``score``: calibrated; None for an empty answer, which has none.

    ``log_ratio``: log-probability under the policy that said it less that under the live one, in nats a sequence;
    0 for the live policy's own answers.
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
    """Nats a token of people's own held-out texts under both policies; what learning cost shows there first."""

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
    """Judge by the answers of both policies to the same prompts, one inner sequence a prompt, none empty.

    It passes when it wins often enough, and nothing collapsed: the KL to the live policy, the length of its answers,
    the empty and the endless ones, the variety of its word pairs, the phrases that it repeats, and what it thinks of
    people's own texts stay within the limits. Without prompts it does not pass.

    ``judged``: the share that the candidate's answers won of each prompt, in [0, 1], by a judge that the update did
    not learn from; it decides then, and the scores, which the update was drawn to, are reported beside it.
    ``fluency``: None where there are no held-out texts; nothing is asked of it then. The 95% intervals of win rates are
    bootstraps over prompts, because the answers to one prompt share its difficulty.
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
        # k1 on the candidate's own samples: unbiased for KL(candidate || live).
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
    """95% bounds of the mean of (n,) values, resampled with replacement."""
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    lower, upper = np.quantile(counts @ values / n, (0.025, 0.975))
    return float(lower), float(upper)


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct pairs of neighbouring words over all such pairs, in [0, 1]; 0 without any (Li et al. 2016)."""
    pairs = [pair for text in texts for words in [text.split()] for pair in pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def repeated_4(texts: Sequence[str]) -> float:
    """Share of the runs of four words that their own text has said before, in [0, 1]; 0 without any."""
    runs, repeated = 0, 0
    for text in texts:
        words = text.split()
        said = list(zip(*(words[i:] for i in range(_WORDS)), strict=False))
        runs += len(said)
        repeated += len(said) - len(set(said))
    return repeated / runs if runs else 0.0


def win_share(candidate: Sequence[float | None], live: Sequence[float | None]) -> float:
    """Over all pairs of scored answers to one prompt; a tie is half, an empty answer (None) loses to any other."""
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
    # A figure that is not a number keeps no rule.
    return [Reason(rule, text) for is_kept, rule, text in rules if not is_kept]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
