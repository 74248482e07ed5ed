"""lane: the groups that wait in one lane, ordered by urgency."""

from __future__ import annotations

import asyncio
import bisect
import heapq
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import QueueFull
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import Floats, RewardModel
from rewardloop_server.scoring.shares import Shares

# A request without a deadline is ordered as if it had this one, so that it cannot starve behind requests with one.
_IMPLIED_DEADLINE_S = 60.0

# By how much an earlier run weighs less with each later one in the mean of what a token costs. After a handful of runs
# a burst of odd ones is forgotten. Runs weigh by their tokens: a run of one short text is nearly all fixed costs.
_KEPT = 0.8

# Most rows of a window: planning 256 takes 1 to 4 ms (2 cores, without and with tree rows), on the event loop.
_MOST_ROWS = 256

_RETRY_MS = (20, 10_000)

# An account that had a short run counts for so long as one that will have another.
_SHORT_RUNS_LAST_S = 1.0


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of one group.

    Attributes:
        logits: Raw logits, (responses, heads).
        queue_s: Seconds that it waited for its first run.
        run_s: Seconds of the runs that scored parts of it.
        run_rows: Rows of the last of these runs; 0 if there was none.
        run_tokens: Tokens of that run without padding.
    """

    logits: Floats
    queue_s: float = 0.0
    run_s: float = 0.0
    run_rows: int = 0
    run_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Marks rows of a run that failed, which run again only with rows of the same part."""


@dataclass(slots=True, eq=False)
class Group:
    """Rows to be run by one version, and who waits for them. Times are on the monotonic clock.

    ``caller`` is the name by which runs are fair, and ``account`` that by which room is shared out.
    """

    model: RewardModel
    rows: Sequence[Encoded]
    caller: str
    deadline: float | None
    outcome: asyncio.Future[Scored]
    account: str = ""
    enqueued: float = field(default_factory=time.monotonic)
    order: int = 0
    waiting: dict[int, Part | None] = field(init=False)  # indices of the rows that no run has taken, with their parts
    tokens: int = field(init=False)  # of those rows
    logits: Floats = field(init=False)
    unscored: int = field(init=False)
    started: float = 0.0
    run_s: float = 0.0

    def __post_init__(self) -> None:
        self.waiting = dict.fromkeys(range(len(self.rows)), None)
        self.tokens = sum(len(row.ids) for row in self.rows)
        self.logits = np.empty((len(self.rows), self.model.manifest.heads), dtype=np.float32)
        self.unscored = len(self.rows)

    @property
    def due(self) -> float:
        """The deadline by which the group is ordered."""
        return self.enqueued + _IMPLIED_DEADLINE_S if self.deadline is None else self.deadline


Row = tuple[Group, int]


@dataclass(slots=True)
class _Caller:
    """The groups of one caller, earliest deadline first, and the tokens it was served since it began to wait."""

    served: int
    queue: list[tuple[float, int, Group]] = field(default_factory=list)


class Lane:
    """A bounded queue of groups, fair between callers by tokens.

    Invariants:

    - The caller that was served the fewest tokens is the most urgent, and a tie goes to the earlier deadline
      (start-time fair queueing, Goyal et al. 1996, by row). A caller that begins to wait starts where the most urgent
      one stood before the latest run, so that it neither makes up for the past nor waits behind the backlog of others.
      Hence callers that keep waiting differ by no more than the tokens of two runs, and a caller that arrives while one
      other waits is in the next run.
    - Within a caller the group with the earliest deadline is the most urgent, then the one that came first.
    - `tokens` is the sum over the rows that wait. It exceeds the bound by no more than one group that is larger than
      any share (see `Shares`), and the tokens by which the estimates in `reserve` were too low.
    """

    def __init__(self, name: str, *, max_tokens: int, max_s: float, metrics: ServerMetrics) -> None:
        self.name = name
        self.tokens = 0
        self.pushes = 0
        self.last_taken = -float("inf")
        self._shares = Shares()
        self._max_tokens = max_tokens
        self._max_s = max_s
        self._s_per_token = 0.0
        self._recent_s = self._recent_tokens = 0.0
        self._bound: float = max_tokens  # the nearer bound, in tokens
        self._order = itertools.count()
        self._callers: dict[str, _Caller] = {}
        # Tokens that the most urgent caller was served after the latest run, and after the one before it.
        self._reached = self._level = 0
        self._short_runs: dict[str, float] = {}  # when the two accounts that had the latest short runs had them
        self._gauge = metrics.queue_tokens.labels(lane=name)
        self._saturation = metrics.queue_saturation_ratio.labels(lane=name)
        self._oldest_wait = metrics.queue_oldest_wait_seconds.labels(lane=name)
        self._work = metrics.queue_work_seconds.labels(lane=name)

    @property
    def backlog_s(self) -> float:
        """Seconds that the engine will work on what waits here, at the pace of the latest runs."""
        return self._shares.total * self._s_per_token

    def tokens_in(self, seconds: float) -> float:
        """Return how many tokens the engine runs in that time, at the pace of the latest runs; infinite before any."""
        return seconds / self._s_per_token if self._s_per_token else math.inf

    @property
    def has_bulk_room(self) -> bool:
        """Whether less than half of the bound is used. Bulk calls use no more, so that single requests have room."""
        return self._share() < 0.5

    def reserve(self, tokens: int, account: str, *, is_bounded: bool = True) -> None:
        """Reserve room for a group of about ``tokens`` until `release`.

        Raises QueueFull if ``is_bounded`` and the group does not fit into the account's share of what is left.
        """
        if is_bounded and not self._shares.has_room(account, tokens, self._bound):
            # By then half of the backlog is done, so there is room for about as many tokens as still wait.
            retry_ms = min(max(int(self.backlog_s * 500), _RETRY_MS[0]), _RETRY_MS[1])
            raise QueueFull(
                f"the {self.name} queue holds {self._shares.total} of {self._max_tokens} tokens,"
                f" {self.backlog_s:.1f} of {self._max_s:.1f} s of work, and this caller's share of the rest is smaller",
                retry_after_ms=retry_ms,
            )
        self._shares.hold(account, tokens, self._bound)

    def release(self, tokens: int, account: str) -> None:
        """Give reserved room back."""
        self._shares.give_back(account, tokens)

    def push(self, group: Group) -> None:
        """Queue a group."""
        group.order = next(self._order)
        self._insert(group)
        self.pushes += 1
        self._count(group.account, group.tokens)

    def put_back(self, rows: Iterable[Row], part: Part | None) -> None:
        """Let rows of a run that failed wait again, as this part, where they stood. Answered groups are skipped."""
        for group, index in rows:
            if group.outcome.done():
                continue
            if index not in group.waiting:
                size = len(group.rows[index].ids)
                if not group.waiting:
                    self._insert(group)
                group.tokens += size
                self._count(group.account, size)
            group.waiting[index] = part

    def wait_s(self, caller: str, deadline: float | None) -> float:
        """Return the least seconds that a group which came now would wait for other work of this lane.

        The earlier work of its own caller goes first, and as much work of each other caller.
        """
        if deadline is None or caller not in self._callers:
            return 0.0
        queue = self._callers[caller].queue
        ahead = sum(group.tokens for _, _, group in queue[: bisect.bisect(queue, (deadline,))])
        return min(self.tokens, ahead * len(self._callers)) * self._s_per_token

    def window(self, max_tokens: float, without: Sequence[str] = ()) -> list[Row]:
        """Return the most urgent rows of one version and part, most urgent first.

        They have up to ``max_tokens``, but there is at least one row if any waits. Those of the accounts ``without``
        are left out.
        """
        heap = [
            (c.served, *c.queue[0][:2], c, 0) for c in self._callers.values() if c.queue[0][2].account not in without
        ]
        heapq.heapify(heap)
        rows: list[Row] = []
        model: RewardModel | None = None
        part: Part | None = None
        left = max_tokens
        while heap and left > 0:
            served, _, _, caller, at = heapq.heappop(heap)
            group = caller.queue[at][2]
            if model is None or group.model is model:
                model = group.model
                for index, own in group.waiting.items():
                    if not rows:
                        part = own
                    elif own is not part:
                        continue
                    size = len(group.rows[index].ids)
                    if rows and (size > left or len(rows) == _MOST_ROWS):
                        return rows
                    rows.append((group, index))
                    left -= size
                served += group.tokens
            if at + 1 < len(caller.queue):
                heapq.heappush(heap, (served, *caller.queue[at + 1][:2], caller, at + 1))
        return rows

    def is_overtaken(self, rows: Sequence[Row]) -> bool:
        """Return whether a group that has none of these rows is more urgent than all that have."""
        if not self._callers:
            return False
        most = min(self._callers.values(), key=lambda c: (c.served, *c.queue[0][:2]))
        urgent = most.queue[0][2]
        return all(group is not urgent for group, _ in rows)

    def take(self, rows: Sequence[Row], now: float, *, is_long: bool = False) -> None:
        """Note that these rows run now. Rows whose group was dropped meanwhile are skipped."""
        self.last_taken = now
        if not is_long:
            for account in {group.account for group, _ in rows}:
                self._note_short_run(account, now)
        taken: dict[str, int] = {}
        for group, index in rows:
            if index not in group.waiting:
                continue
            size = len(group.rows[index].ids)
            del group.waiting[index]
            group.started = group.started or now
            group.tokens -= size
            taken[group.account] = taken.get(group.account, 0) + size
            self._callers[group.caller].served += size
            if not group.waiting:
                self._remove(group)
        for account, tokens in taken.items():
            self._count(account, -tokens)
        self._level, self._reached = self._reached, self._least_served()

    def has_short_runs_of_others(self, account: str, now: float) -> bool:
        """Return whether another account had a short run within the last second."""
        return any(now - at < _SHORT_RUNS_LAST_S for other, at in self._short_runs.items() if other != account)

    def _note_short_run(self, account: str, now: float) -> None:
        self._short_runs.pop(account, None)
        self._short_runs[account] = now
        if len(self._short_runs) > 2:
            del self._short_runs[next(iter(self._short_runs))]

    def drop(self, group: Group) -> None:
        """Remove the group's waiting rows, which are not run."""
        if group.waiting:
            group.waiting.clear()
            self._remove(group)
            self._count(group.account, -group.tokens)
            group.tokens = 0

    def fail(self, group: Group, error: Exception) -> None:
        """Remove the group's waiting rows, and fail it unless it is answered."""
        self.drop(group)
        if not group.outcome.done():
            group.outcome.set_exception(error)

    def groups(self) -> list[Group]:
        """Return every group that has waiting rows."""
        return [group for caller in self._callers.values() for _, _, group in caller.queue]

    def expired(self, now: float) -> list[Group]:
        """Return the groups whose deadline has passed."""
        return [group for c in self._callers.values() for group in _expired(c, now)]

    def oldest_wait_s(self, now: float) -> float:
        """Return the seconds since the lane's last run, or since the oldest waiting group came if that is later.

        Of each caller only the most urgent group is looked at.
        """
        heads = [c.queue[0][2].enqueued for c in self._callers.values()]
        return now - max(min(heads), self.last_taken) if heads else 0.0

    def set_gauges(self) -> None:
        """Set the gauges that change with time alone."""
        heads = [caller.queue[0][2].enqueued for caller in self._callers.values()]
        self._saturation.set(self._share())
        self._oldest_wait.set(time.monotonic() - min(heads) if heads else 0.0)
        self._work.set(self.backlog_s)

    def ran(self, tokens: int, seconds: float) -> None:
        """Note that a run of ``tokens`` of this lane took ``seconds``."""
        self._recent_s = _KEPT * self._recent_s + seconds
        self._recent_tokens = _KEPT * self._recent_tokens + max(1, tokens)
        self._s_per_token = self._recent_s / self._recent_tokens
        if self._s_per_token:
            self._bound = min(self._max_tokens, self._max_s / self._s_per_token)

    def _share(self) -> float:
        """Return how much of its nearer bound the lane uses."""
        return self._shares.total / self._bound

    def _least_served(self) -> int:
        return min((caller.served for caller in self._callers.values()), default=self._reached)

    def _insert(self, group: Group) -> None:
        caller = self._callers.get(group.caller)
        if caller is None:
            caller = self._callers[group.caller] = _Caller(min(self._level, self._least_served()))
        bisect.insort(caller.queue, (group.due, group.order, group))

    def _remove(self, group: Group) -> None:
        caller = self._callers[group.caller]
        del caller.queue[bisect.bisect_left(caller.queue, (group.due, group.order))]
        if not caller.queue:
            del self._callers[group.caller]

    def _count(self, account: str, tokens: int) -> None:
        self.tokens += tokens
        if tokens > 0:
            self._shares.hold(account, tokens, self._bound)
        else:
            self._shares.give_back(account, -tokens)
        self._gauge.set(self.tokens)


def _expired(caller: _Caller, now: float) -> Iterator[Group]:
    for due, _, group in caller.queue:
        if due > now:
            return
        if group.deadline is not None:
            yield group
