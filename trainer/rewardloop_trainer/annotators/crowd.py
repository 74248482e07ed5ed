"""What is known of a crowd: who is reliable, who is flagged, whose ids are one hand, what each signal then weighs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewardloop_trainer.annotators.agreement import Agreement, Consistency, agreement_of, self_consistency
from rewardloop_trainer.annotators.bursts import Burst, find_bursts
from rewardloop_trainer.annotators.crowd_bt import cross_fitted_margins
from rewardloop_trainer.annotators.crowd_file import CrowdVotes
from rewardloop_trainer.annotators.gestures import Gesture
from rewardloop_trainer.annotators.habits import Flag, find_habits
from rewardloop_trainer.annotators.hands import find_hands, joined
from rewardloop_trainer.annotators.reliability import Reliability, estimate_reliability, truth_log_odds
from rewardloop_trainer.annotators.topics import PUSHED, Push, find_pushes, flags_of
from rewardloop_trainer.annotators.votes import FIRST, Floats, Votes
from rewardloop_trainer.data.weights.trust import Trust, trust_weight

# Whoever has one of these habits does not judge by the texts, so that nothing of what they say is heard.
_MUTED = frozenset({"first", "longer", "button", "pace"})
# A response has to be in so many comparisons on average before a Bradley-Terry model of responses says something.
_LEAST_COMPARISONS = 3.0
_PASSES = 3
_SCALES = [0.0, *np.geomspace(0.1, 10, 41).tolist()]


@dataclass(frozen=True, slots=True)
class Crowd:
    """What is known of a crowd.

    Attributes:
        reliability: Of its people.
        agreement: Krippendorff's alpha among their comparisons.
        consistency: Of people who were asked the same again.
        flags: Who was flagged, by what.
        hands: The hand of each id that shares one.
        pushes: Words that are pushed.
        bursts: Times with far more signals than usual.
        trust: How signals are weighed by all of it.
        muted: Share of people's signals that weigh nothing.
    """

    reliability: Reliability
    agreement: Agreement
    consistency: Consistency
    flags: tuple[Flag, ...]
    hands: Mapping[str, str]
    pushes: tuple[Push, ...]
    bursts: tuple[Burst, ...]
    trust: Trust
    muted: float


def know_crowd(crowd: CrowdVotes, gestures: Sequence[Gesture]) -> Crowd:
    """Estimate reliability from the votes, look for habits and hands, and say how signals are weighed.

    Ids of one hand vote once in the estimate, so that they do not vouch for each other. Of a person who voted on an
    item several times, the last vote counts; the earlier ones only tell how consistent people are.

    Args:
        crowd: The votes of people.
        gestures: How each signal of people was given, in the order of the ledger.
    """
    consistency, crowd = self_consistency(crowd.votes), crowd.last
    votes = crowd.votes
    habits = find_habits(gestures)
    pushes = tuple(find_pushes(gestures))
    reliability = estimate_reliability(votes, prior_of(crowd, {}))
    found: list[Flag] = []
    hands: dict[str, str] = {}
    for _ in range(_PASSES):
        accuracy = {name: each.accuracy for name, each in reliability.people.items()}
        flags, now = find_hands(votes, accuracy)
        if now.keys() == hands.keys():
            break
        found, hands = flags, now
        reliability = estimate_reliability(_once_a_hand(votes, hands), prior_of(crowd, hands))
    pushing = [(push.people[0], other) for push in pushes for other in push.people[1:]]
    hands = joined([*hands.items(), *pushing])
    muted = {flag.person for flag in habits if flag.detector in _MUTED}
    trust = _trust(reliability, gestures, hands, pushes, muted)
    silent = sum(trust_weight(trust.accuracy.get(each.person, trust.crowd)) == 0 for each in gestures if each.person)
    return Crowd(
        reliability,
        agreement_of(votes),
        consistency,
        (*habits, *found, *flags_of(pushes)),
        hands,
        pushes,
        tuple(find_bursts(gestures)),
        trust,
        silent / len(gestures) if gestures else 0.0,
    )


def prior_of(crowd: CrowdVotes, hands: Mapping[str, str]) -> Floats:
    """Return what is known of each vote's item without its person, as log odds of the truth, (n,).

    That is a model's cross-fitted margin where there is one. Elsewhere it is that of a Bradley-Terry model of the
    responses, fitted on other people's votes, if responses are compared often enough.
    """
    votes = crowd.votes
    known = np.isfinite(crowd.margins)
    margins = np.where(known, crowd.margins, 0.0)
    responses = {(item[0], side) for item in votes.items for side in item[1:]}
    if len(votes) and not known.all() and 2 * len(votes.items) >= _LEAST_COMPARISONS * len(responses):
        margins = np.where(known, margins, cross_fitted_margins(votes, hands=hands))
    return truth_log_odds(_calibrated(margins, votes), _typical(votes))


def _calibrated(margins: Floats, votes: Votes) -> Floats:
    """Return the margins at the scale at which they say best what people vote; none of them learned from its vote."""
    kept = (votes.choice <= 1) & (margins != 0)
    if not kept.any():
        return margins
    won = np.where(votes.choice[kept] == FIRST, margins[kept], -margins[kept])
    losses = [float(votes.weight[kept] @ np.logaddexp(0.0, -scale * won)) for scale in _SCALES]
    return np.asarray(margins * _SCALES[int(np.argmin(losses))])


def _typical(votes: Votes) -> float:
    """Return how often a vote is right, from how often two people agree: h = p^2 + (1 - p)^2."""
    counts = np.zeros((len(votes.items), 2))
    kept = votes.choice <= 1
    np.add.at(counts, (votes.item[kept], votes.choice[kept]), 1.0)
    sizes = counts.sum(1)
    pairs = float((sizes * (sizes - 1)).sum()) + 100.0
    agreeing = float((counts * (counts - 1)).sum()) + 100.0 * 0.625  # as two who are right three times in four
    return 0.5 + 0.5 * float(np.sqrt(max(2 * agreeing / pairs - 1, 0.01)))


def _once_a_hand(votes: Votes, hands: Mapping[str, str]) -> Votes:
    """Return the votes with each hand's votes on an item sharing the weight of one."""
    if not hands:
        return votes
    number = {name: place for place, name in enumerate(votes.people)}
    of = np.array([number.get(hands.get(name, name), place) for place, name in enumerate(votes.people)])
    _, which, times = np.unique(
        np.stack([of[votes.person], votes.item]), axis=1, return_inverse=True, return_counts=True
    )
    shares = votes.weight / times[which.reshape(-1)]
    return Votes(votes.people, votes.items, votes.person, votes.item, votes.choice, shares, votes.slices)


def _trust(
    reliability: Reliability,
    gestures: Sequence[Gesture],
    hands: Mapping[str, str],
    pushes: Sequence[Push],
    muted: set[str],
) -> Trust:
    accuracy = {name: each.accuracy for name, each in reliability.people.items()} | dict.fromkeys(muted, 0.5)
    by_slice = {name: each.slices for name, each in reliability.people.items() if each.slices and name not in muted}
    signals = _said_again(gestures)
    for push in pushes:
        for key in push.signals:
            signals[key] = signals.get(key, 1.0) * min(1.0, PUSHED / len(push.signals))
    return Trust(accuracy, by_slice, reliability.crowd, dict(hands), signals)


def _said_again(gestures: Sequence[Gesture]) -> dict[str, float]:
    """Return the factors of signals of people who judged the same responses to the same prompt more than once.

    What a person said last counts, once: its copies share the weight of one signal, and all that differs from it weighs
    nothing.
    """
    last = {(each.person, each.question): each.content for each in gestures if each.person}
    times = Counter((each.person, each.question, each.content) for each in gestures)
    factors = {}
    for each in gestures:
        if each.person:
            is_last = each.content == last[each.person, each.question]
            factors[each.key] = is_last / times[each.person, each.question, each.content]
    return {key: factor for key, factor in factors.items() if factor < 1}
