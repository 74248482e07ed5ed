"""isolate: cuts a run that failed into parts that run again, so that only the request at fault gets the error.

One request can hold what the graph cannot run, or what it gives no finite logit for, and then the whole run fails. Its
requests run again in about as many parts as the root of their number, and those of a part that fails again run one by
one. So every request runs at most three times, and an innocent one waits for few more runs. The requests of a run that
did not end in time run again one by one at once, because each run that holds the one at fault takes all of its time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

from rewardloop_server.calls.errors import InternalError, NotLoadable, RewardloopError, told
from rewardloop_server.scoring.engine import Overrun, UnusableLogits
from rewardloop_server.scoring.lane import Group, Row
from rewardloop_server.scoring.offer import Offer

# So few requests run one by one at once.
_FEW = 4

# Once so many runs have not ended, the requests that are left of them fail without another run.
_MOST_OVERRUNS = 3


def parts_of(rows: Sequence[Row], *, is_part: bool) -> Iterator[list[Row]]:
    """Yield the parts in which the rows of a failed run are to run again. The rows of a group stay together.

    Args:
        rows: The run's rows, of at least two groups.
        is_part: The run was itself part of one that failed.
    """
    groups: dict[Group, list[Row]] = {}
    # A caller that sends one bad request often sends several, so the groups of a caller go into the same parts.
    for row in sorted(rows, key=lambda row: row[0].caller):
        groups.setdefault(row[0], []).append(row)
    members = list(groups.values())
    size = 1 if is_part or len(members) <= _FEW else math.isqrt(len(members))
    for start in range(0, len(members), size):
        yield list(chain.from_iterable(members[start : start + size]))


def error_of(error: Exception) -> RewardloopError:
    """Return what the caller of a request gets on which the model failed with ``error``."""
    if isinstance(error, UnusableLogits | Overrun):
        return InternalError()
    return NotLoadable(f"the model failed on this request: {told(error)}")


class Suspects:
    """The runs that were told to stop and have not ended, and their groups that are not answered."""

    def __init__(self) -> None:
        self._runs: set[Offer] = set()
        self._groups: set[Group] = set()
        self._overruns = 0

    def __bool__(self) -> bool:
        return bool(self._runs or self._groups)

    def __contains__(self, group: Group) -> bool:
        return group in self._groups

    def __iter__(self) -> Iterator[Group]:
        return iter(tuple(self._groups))

    @property
    def has_room(self) -> bool:
        """Whether their groups may still be tried one by one."""
        return self._overruns < _MOST_OVERRUNS

    def add(self, offer: Offer) -> None:
        """Suspect the groups of a run that was told to stop."""
        self._overruns = self._overruns + 1 if self else 1
        self._runs.add(offer)
        for group, _ in offer.rows:
            if group not in self._groups and not group.outcome.done():
                self._groups.add(group)
                group.outcome.add_done_callback(lambda _, group=group: self._groups.discard(group))  # type: ignore[misc]

    def ended(self, offer: Offer) -> None:
        """Note that a run has ended, whether or not it was told to stop."""
        self._runs.discard(offer)
