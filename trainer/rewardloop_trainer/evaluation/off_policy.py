"""Estimates from logged judgements how good a policy is that did not give the answers, and how position sways people.

The responses were sampled by a logging policy mu, shown by a stated rule, and judged. A judgement of a response y to a
prompt x is weighed by ``pi(y | x) / mu(y | x)``, so that the weighted mean estimates the value of the policy pi.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rewardloop.formats.signals import judged_alone, person_of, signal_key
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.clusters import as_share, clustered_mean
from rewardloop_trainer.data.preferences import NoSupport, check_support, pair_exposure
from rewardloop_trainer.reward.evaluate import Floats

_ALPHA = 0.025  # on either side of an interval
LEAST_CLUSTERS = 30  # below it the interval covers less than it says


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judged response of the logging policy.

    Attributes:
        response: Index of the response in the event.
        value: What people gave it, in [0, 1]: the label of a thumb or rating; or, against the other response of a
            pair, 1 for the chosen one, 0 for the rejected one and one half for a tie.
        exposure: The probability with which a uniform rule would have shown it, as a ratio to the probability with
            which it was shown.
    """

    response: int
    value: float
    exposure: float


@dataclass(frozen=True, slots=True)
class Value:
    """An estimate of a mean with its 95% interval.

    Attributes:
        estimate: The estimate.
        lower: Lower end of the interval.
        upper: Upper end of the interval.
    """

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class OffPolicy:
    """The value of a policy, estimated in three ways.

    Attributes:
        logged: The plain mean: the value of the policy that gave the answers.
        ips: Inverse propensity scoring. It is unbiased if no weight was truncated, and varies most.
        snips: Self-normalised (Swaminathan and Joachims 2015): biased by less than its interval in large samples, and
            in [0, 1] like the values.
        doubly_robust: The model's values corrected by the weighed residuals (Dudik et al. 2011); None without a model.
        effective_samples: ``(sum w)^2 / sum w^2`` of the weights: how many unweighed judgements would tell as much.
        truncated_share: Share of the weights that were truncated.
        clusters: Independent clusters, over which the intervals are taken.
    """

    logged: Value
    ips: Value
    snips: Value
    doubly_robust: Value | None
    effective_samples: float
    truncated_share: float
    clusters: int


def judgements(event: feedback_pb2.FeedbackEvent) -> Iterator[Judgement]:
    """Yield what a signal says about single responses.

    Raises:
        NoSupport: The signal does not say how its responses came to be shown, the rule never shows some responses, or
            the sampling leaves other texts without probability.
    """
    if not event.HasField("shown"):
        raise NoSupport("the propensities were not recorded")
    shown = event.shown
    if shown.temperature <= 0 or shown.top_p < 1:
        raise NoSupport("sampled greedily or with top_p below 1, so that other texts had no probability")
    match event.WhichOneof("signal"):
        case "choice":
            exposure = pair_exposure(shown, len(event.responses))
            yield Judgement(event.choice.chosen, 1.0, exposure)
            yield Judgement(event.choice.rejected, 0.0, exposure)
        case "tie":
            exposure = pair_exposure(shown, len(event.responses))
            yield Judgement(event.tie.first, 0.5, exposure)
            yield Judgement(event.tie.second, 0.5, exposure)
        case "thumb" | "rating":
            judged = judged_alone(event)
            assert judged is not None
            yield Judgement(judged[0], judged[1], _exposure(shown, judged[0], len(event.responses)))
        case other:
            raise NoSupport(f"a signal of kind {other} gives no value to a response")


def off_policy_value(
    values: Floats,
    weights: Floats,
    clusters: Sequence[str],
    *,
    exposures: Floats | None = None,
    model_values: Floats | None = None,
    policy_values: Floats | None = None,
    most_weight: float = math.inf,
) -> OffPolicy:
    """Estimate the value of a policy pi from judgements of responses that another policy mu gave.

    Args:
        values: What people gave each response, (n,), in [0, 1].
        weights: ``pi(y | x) / mu(y | x)`` of each, (n,), at least 0.
        clusters: What each judgement depends on others through, such as its prompt or its person, n labels.
        exposures: See `Judgement.exposure`, (n,); 1 by default.
        model_values: For the doubly robust estimate, a model's value of each response, (n,).
        policy_values: For the doubly robust estimate, the same model's mean value of responses that pi gives to each
            prompt, (n,).
        most_weight: Larger weights are truncated to it, which biases the estimates towards the logging policy's value.

    Raises:
        ValueError: If there are fewer than `LEAST_CLUSTERS` clusters, whose interval could not be trusted.
    """
    names, of_cluster = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    if len(names) < LEAST_CLUSTERS:
        raise ValueError(f"an interval needs {LEAST_CLUSTERS} independent clusters of judgements, not {len(names)}")
    shown = np.ones_like(values) if exposures is None else exposures
    shown = shown / shown.mean()
    kept = np.minimum(weights, most_weight)
    each = kept * shown
    logged = float((shown * values).mean())
    total = float(each.mean())
    snips = float((each * values).sum() / each.sum()) if total > 0 else math.nan
    residuals = each * (values - snips) / total if total > 0 else np.full_like(each, math.nan)
    robust = None
    if model_values is not None and policy_values is not None:
        parts = policy_values * shown + each * (values - model_values)
        robust = _value(parts, of_cluster)
    return OffPolicy(
        logged=_share(logged + shown * (values - logged), of_cluster),
        ips=_value(each * values, of_cluster),
        snips=_share(snips + residuals, of_cluster),
        doubly_robust=robust,
        effective_samples=float(each.sum() ** 2 / (each**2).sum()) if total > 0 else 0.0,
        truncated_share=float((weights > most_weight).mean()),
        clusters=len(names),
    )


@dataclass(frozen=True, slots=True)
class PositionBias:
    """How often the response that was seen first won.

    Attributes:
        first_wins: Share of the choices that the first of the two displayed responses won, one value a person. It is
            one half if the position does not matter and the order was drawn at random.
        choices: Choices with a known display order.
        people: People, or signals that name nobody, that the interval is taken over.
    """

    first_wins: Value
    choices: int
    people: int


def position_bias(events: Sequence[feedback_pb2.FeedbackEvent]) -> PositionBias | None:
    """Estimate the position bias of choices whose display order is known.

    Returns None if fewer than `LEAST_CLUSTERS` people gave such choices. The estimate supposes that the order was drawn
    at random: it is confounded if the product always shows the better response first.
    """
    by_person: dict[str, list[float]] = {}
    for event in events:
        order = list(event.display_order)
        if event.WhichOneof("signal") != "choice" or not {event.choice.chosen, event.choice.rejected} <= set(order):
            continue
        person = person_of(event) or f"event {signal_key(event)}"
        is_first = order.index(event.choice.chosen) < order.index(event.choice.rejected)
        by_person.setdefault(person, []).append(float(is_first))
    if len(by_person) < LEAST_CLUSTERS:
        return None
    means = np.array([np.mean(won) for won in by_person.values()])
    value = _share(means, np.arange(len(means)))
    return PositionBias(value, sum(map(len, by_person.values())), len(means))


def _exposure(shown: feedback_pb2.Shown, response: int, responses: int) -> float:
    if not shown.HasField("chosen"):
        return 1.0
    check_support(shown.chosen)
    return responses / shown.chosen.sampled / shown.show_probabilities[response]


def _value(influenced: Floats, clusters: npt.NDArray[np.intp]) -> Value:
    """The mean of an estimate plus its influence function, (n,), with the interval over independent clusters."""
    found = clustered_mean(influenced, np.ones(len(influenced)), clusters)
    return Value(found.mean, found.lower(_ALPHA), found.upper(_ALPHA))


def _share(influenced: Floats, clusters: npt.NDArray[np.intp]) -> Value:
    """The same of an estimate that is in [0, 1] by its construction, as no unbiased estimate by weights is."""
    found = as_share(clustered_mean(influenced, np.ones(len(influenced)), clusters))
    return Value(found.mean, found.lower(_ALPHA), found.upper(_ALPHA))
