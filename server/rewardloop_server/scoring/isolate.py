"""isolate: cuts a run that failed into parts that run again, so that only the request at fault gets the error.

One request can hold what the graph cannot run, or what it gives no finite logit for, and then the whole run fails. Its
requests run again in about as many parts as the root of their number, and those of a part that fails again run one by
one. So every request runs at most three times, and an innocent one waits for few more runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

from rewardloop_server.calls.errors import InternalError, NotLoadable, RewardloopError, told
from rewardloop_server.scoring.engine import UnusableLogits
from rewardloop_server.scoring.lane import Group, Row

# So few requests run one by one at once.
_FEW = 4


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
    if isinstance(error, UnusableLogits):
        return InternalError()
    return NotLoadable(f"the model failed on this request: {told(error)}")
