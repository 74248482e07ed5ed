"""Takes what was erased out of what operators are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rewardloop.formats.erasing.erasures import CLOCKS_DIFFER_S, Erasure, Erasures
from rewardloop.v1 import operations_pb2


def drop_erased_examples(shown: operations_pb2.Round, erasures: Erasures) -> int:
    """Delete the examples of erased signals from a round, and return how many.

    Those that do not say of which signal they are go too, unless the round began after the last erasure.
    """
    began_at = shown.start_time.ToNanoseconds() / 1e9
    are_all_named = bool(_before(erasures.all, began_at))
    left = [
        each
        for each in shown.examples
        if (not erasures.is_erased_event(each.event_id, each.caller) if each.event_id else not are_all_named)
    ]
    if gone := len(shown.examples) - len(left):
        del shown.examples[:]
        shown.examples.extend(left)
    return gone


def drop_erased_people(crowd: operations_pb2.Crowd, erasures: Erasures, began_at: float = -math.inf) -> int:
    """Delete erased people from what a round that began at a time knows, and return how many.

    Who was erased before the round began has spoken again since, and stays. By default everybody who was erased goes.
    """
    left = [each for each in crowd.people if not _before(erasures.of_person(each.annotator_id, each.caller), began_at)]
    if gone := len(crowd.people) - len(left):
        del crowd.people[:]
        crowd.people.extend(left)
    return gone


def _before(erasures: Iterable[Erasure], began_at: float) -> list[Erasure]:
    """Return the erasures that a round which began at a time may have begun before."""
    return [each for each in erasures if began_at <= each.requested_at + CLOCKS_DIFFER_S]
