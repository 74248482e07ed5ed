"""What a crowd's people are like, as operators see it: agreement, pace, reliability, flags."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

import numpy as np

from rewardloop.formats.signals import parts_of
from rewardloop.v1 import operations_pb2
from rewardloop_trainer.annotators.crowd import Crowd
from rewardloop_trainer.annotators.gestures import Gesture
from rewardloop_trainer.annotators.habits import Flag
from rewardloop_trainer.annotators.votes import Votes
from rewardloop_trainer.vocabulary import Detector

MOST_PEOPLE = 1_000
_HABITS: Mapping[Detector, str] = {
    "first": "chooses the answer that is shown first",
    "longer": "chooses the longer answer",
    "button": "presses the same button",
    "pace": "answers faster than anybody reads",
    "copies": "says the same again",
    "hands": "answers as another id does",
    "topic": "votes by one word rather than by the answer",
}
_PAUSE_S = 600.0
_BATCH_S = 0.05  # signals that arrive closer together were sent together, as by an import


def crowd_message(crowd: Crowd, votes: Votes, gestures: Sequence[Gesture]) -> operations_pb2.Crowd:
    """Return what is known of the people with the most signals, those of the most first.

    Args:
        crowd: What was estimated.
        votes: The votes that it was estimated from.
        gestures: How each signal of people was given.
    """
    signals = Counter(each.person for each in gestures if each.person)
    paces, agreements = _paces(gestures), agreement_with_others(votes)
    message = operations_pb2.Crowd(people_count=len(signals), muted_share=crowd.muted)
    message.report_time.FromNanoseconds(time.time_ns())
    for name, value in (
        ("alpha", crowd.agreement.alpha),
        ("alpha_lower", crowd.agreement.lower),
        ("alpha_upper", crowd.agreement.upper),
        ("consistency", crowd.consistency.same),
    ):
        if math.isfinite(value):
            setattr(message, name, value)
    for name, count in signals.most_common(MOST_PEOPLE):
        caller, annotator = parts_of(name)
        person = message.people.add(
            caller=caller, annotator_id=annotator, signals=count, weight=crowd.trust.weight(name)
        )
        if (known := crowd.reliability.people.get(name)) is not None:
            person.votes, person.reliability = known.votes, known.accuracy
            person.reliability_deviation = known.deviation
        if name in agreements:
            person.agreement, person.compared = agreements[name]
        if name in paces:
            person.pace_s = paces[name]
        person.hand = "" if crowd.hands.get(name, name) == name else parts_of(crowd.hands[name])[1]
        for flag in crowd.flags:
            if flag.person == name:
                person.flags.add(detector=flag.detector, text=_words(flag))
    return message


def _words(flag: Flag) -> str:
    text = f"{_HABITS[flag.detector]} in {flag.share:.0%} of {flag.signals:,} signals"
    return f"{text} ({flag.about})" if flag.about else text


def agreement_with_others(votes: Votes) -> dict[str, tuple[float, int]]:
    """Return by person the share of others' votes on the same items that equal theirs, and how many were compared.

    Of a person who voted on an item several times, the last vote counts.
    """
    last = votes.is_last
    person, item, choice = votes.person[last], votes.item[last], votes.choice[last]
    counts = np.zeros((len(votes.items), 3))
    np.add.at(counts, (item, choice), 1.0)
    others = counts.sum(1)[item] - 1
    same = counts[item, choice] - 1
    of_person = np.bincount(person, weights=same, minlength=len(votes.people))
    total = np.bincount(person, weights=others, minlength=len(votes.people))
    return {
        name: (float(of_person[place] / total[place]), int(total[place]))
        for place, name in enumerate(votes.people)
        if total[place]
    }


def _paces(gestures: Sequence[Gesture]) -> Mapping[str, float]:
    """Return by person the median seconds from one signal to the next, without pauses.

    Nobody is in it whose signals came mostly in batches without the times at which they were given.
    """
    times: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for each in gestures:
        if each.person:
            is_given = each.given_ms is not None
            times[each.person].append(((each.arrived_ms if each.given_ms is None else each.given_ms) / 1000, is_given))
    found = {}
    for name, known in times.items():
        known.sort()
        gaps = [(after - before, is_given) for (before, _), (after, is_given) in pairwise(known)]
        measured = [gap for gap, is_given in gaps if is_given or gap >= _BATCH_S]
        told = [gap for gap in measured if gap < _PAUSE_S]
        if told and 2 * len(measured) >= len(gaps):
            found[name] = median(told)
    return found
