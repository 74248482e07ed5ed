"""append: what waits together is written together.

A write starts when none is under way; what comes meanwhile goes with the next one. Where callers come together, the
next one waits a moment for more of them, so that the busier it is, the fewer round trips and syncs a signal costs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What is written. ``size``: in bytes."""

    @property
    def size(self) -> int: ...


# Where a few callers came within a moment while others waited, a write waits another such moment for enough entries: it
# takes as long as a dozen signals do beside it, whatever its size. A caller who is alone never waits.
_FEW, _MOMENT_S, _ENOUGH = 4, 0.005, 32

E = TypeVar("E", bound=Sized)
R = TypeVar("R")


@dataclass(slots=True)
class _Submission(Generic[E, R]):
    """What one caller wants written: the first ``taken`` entries are written or on their way."""

    entries: Sequence[E]
    done: asyncio.Future[list[R]]
    taken: int = 0
    outcomes: list[R] = field(default_factory=list)


class GroupCommit(Generic[E, R]):
    """Writes the entries of concurrent callers in groups, in the order in which they came, one group at a time.

    ``write`` gives an outcome for each entry of a group of at most ``most_entries``, and of about ``most_bytes``: a
    larger entry is a group of its own.
    """

    def __init__(
        self, write: Callable[[Sequence[E]], Awaitable[Sequence[R]]], *, most_entries: int, most_bytes: int
    ) -> None:
        self._write = write
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._waiting: deque[_Submission[E, R]] = deque()
        self._overlapped: deque[float] = deque(maxlen=_FEW)  # when callers last came while others waited, loop's clock
        self._gathering: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    async def add(self, entries: Sequence[E]) -> list[R]:
        """An outcome for each entry, once all are written; raises what ``write`` raised.

        A failed write fails all who wait: they would wait for the same failure. A caller that is cancelled leaves what
        is not on its way unwritten.
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
        """Until enough entries wait, for a moment at most."""
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
        """What to write next, by who wants it; empty when nobody waits."""
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
