"""Writes entries of concurrent callers together.

A write starts if none is under way. Entries that come meanwhile go with the next write. If many callers come at once,
the next write waits a moment for more entries. So a signal costs fewer round trips and syncs the busier it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """An entry to write, with its size in bytes."""

    @property
    def size(self) -> int: ...


# If `_FEW` callers came within `_MOMENT_S` seconds while others waited, a write waits up to such a moment for `_ENOUGH`
# entries, because a write of any size costs as much time as a dozen signals do beside it. A lone caller never waits.
_FEW, _MOMENT_S, _ENOUGH = 4, 0.005, 32

E = TypeVar("E", bound=Sized)
R = TypeVar("R")


@dataclass(slots=True)
class _Submission(Generic[E, R]):
    """The entries of one caller, of which the first ``taken`` are written or being written."""

    entries: Sequence[E]
    done: asyncio.Future[list[R]]
    taken: int = 0
    outcomes: list[R] = field(default_factory=list)


class GroupCommit(Generic[E, R]):
    """Writes the entries of concurrent callers in groups, in the order in which they came, one group at a time.

    Args:
        write: Writes a group and returns an outcome for each of its entries.
        most_entries: Most entries of a group.
        most_bytes: Most bytes of a group, unless it has a single, larger entry.
    """

    def __init__(
        self, write: Callable[[Sequence[E]], Awaitable[Sequence[R]]], *, most_entries: int, most_bytes: int
    ) -> None:
        self._write = write
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._waiting: deque[_Submission[E, R]] = deque()
        # When callers last came while others waited, by the event loop's clock.
        self._overlapped: deque[float] = deque(maxlen=_FEW)
        self._gathering: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    async def add(self, entries: Sequence[E]) -> list[R]:
        """Return an outcome for each entry once all are written. Raises what ``write`` raises.

        A failed write fails every waiting caller, because their writes would fail the same way. If the caller is
        cancelled, those of its entries that are not being written yet are not written.
        """
        if not entries:
            return []
        loop = asyncio.get_running_loop()
        submission: _Submission[E, R] = _Submission(entries, loop.create_future())
        if self._writer is not None:
            self._overlapped.append(loop.time())
        self._waiting.append(submission)
        if self._gathering is not None and self._has_enough():
            self._end_gathering()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        return await submission.done

    async def _write_all(self) -> None:
        concerned: list[_Submission[E, R]] = []
        try:
            while parts := await self._next_group():
                concerned = [submission for submission, _ in parts]
                group = [entry for _, entries in parts for entry in entries]
                outcomes = await self._write(group)
                start = 0
                for submission, entries in parts:
                    submission.outcomes += outcomes[start : start + len(entries)]
                    start += len(entries)
                    if len(submission.outcomes) == len(submission.entries) and not submission.done.done():
                        submission.done.set_result(submission.outcomes)
        except BaseException as error:
            for submission in (*concerned, *self._waiting):
                if submission.done.done():
                    continue
                if isinstance(error, Exception):
                    submission.done.set_exception(error)
                else:
                    submission.done.cancel()
            self._waiting.clear()
            if not isinstance(error, Exception):
                raise
        finally:
            self._writer = None

    async def _gather(self) -> None:
        """Wait until enough entries wait, but for a moment at most."""
        loop = asyncio.get_running_loop()
        self._gathering = loop.create_future()
        timer = loop.call_later(_MOMENT_S, self._end_gathering)
        try:
            await self._gathering
        finally:
            timer.cancel()
            self._gathering = None

    def _end_gathering(self) -> None:
        if self._gathering is not None and not self._gathering.done():
            self._gathering.set_result(None)

    def _is_busy(self) -> bool:
        now = asyncio.get_running_loop().time()
        return len(self._overlapped) == _FEW and now - self._overlapped[0] < _MOMENT_S

    def _has_enough(self) -> bool:
        return sum(len(each.entries) - each.taken for each in self._waiting) >= _ENOUGH

    async def _next_group(self) -> list[tuple[_Submission[E, R], Sequence[E]]]:
        """Return the next group, as each caller's part of it. Empty if nobody waits."""
        if self._is_busy() and not self._has_enough():
            await self._gather()
        parts: list[tuple[_Submission[E, R], Sequence[E]]] = []
        count = size = 0
        while self._waiting:
            submission = self._waiting[0]
            if not submission.done.done():
                start = end = submission.taken
                while end < len(submission.entries):
                    size += submission.entries[end].size
                    if count == self._most_entries or (count and size > self._most_bytes):
                        break
                    end, count = end + 1, count + 1
                if end > start:
                    parts.append((submission, submission.entries[start:end]))
                    submission.taken = end
                if end < len(submission.entries):
                    break
            self._waiting.popleft()
        return parts
