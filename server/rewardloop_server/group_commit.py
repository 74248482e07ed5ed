"""append: what waits together is written together.

A write starts when none is under way and nobody else is about to come; no clock is waited for. What comes meanwhile
goes with the next one, so that the busier it is, the fewer round trips and syncs a signal costs.
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


_QUIET_TURNS, _MOST_TURNS = 4, 32

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
        self._writer: asyncio.Task[None] | None = None

    async def add(self, entries: Sequence[E]) -> list[R]:
        """An outcome for each entry, once all are written; raises what ``write`` raised.

        A failed write fails all who wait: they would wait for the same failure. A caller that is cancelled leaves what
        is not on its way unwritten.
        """
        if not entries:
            return []
        submission: _Submission[E, R] = _Submission(entries, asyncio.get_running_loop().create_future())
        self._waiting.append(submission)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        return await submission.done

    async def _write_all(self) -> None:
        concerned: list[_Submission[E, R]] = []
        try:
            await self._let_others_come()
            while parts := self._next_group():
                concerned = [submission for submission, _ in parts]
                group = [entry for _, entries in parts for entry in entries]
                outcomes = await self._write(group)
                start = 0
                for submission, entries in parts:
                    submission.outcomes += outcomes[start : start + len(entries)]
                    start += len(entries)
                    if len(submission.outcomes) == len(submission.entries) and not submission.done.done():
                        submission.done.set_result(submission.outcomes)
                await self._let_others_come()
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

    async def _let_others_come(self) -> None:
        """Until the event loop has turned a few times without a new caller: who is about to come goes along.

        An idle loop turns in microseconds; a busy one has requests that are soon here, and a write for each of them
        costs half of what the request itself does.
        """
        quiet = 0
        for _ in range(_MOST_TURNS):
            before = len(self._waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == before else 0
            if quiet == _QUIET_TURNS:
                return

    def _next_group(self) -> list[tuple[_Submission[E, R], Sequence[E]]]:
        """What to write next, by who wants it; empty when nobody waits."""
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
                    return parts
            self._waiting.popleft()
        return parts
