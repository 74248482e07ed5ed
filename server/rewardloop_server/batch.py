"""batch: bounded lanes of waiting groups, and the loop that feeds the engine.

The loop is work-conserving: it never waits while something is queued, and batches what came while the engine ran.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import structlog

from rewardloop.formats.text import Encoded
from rewardloop_server.engine import Floats, RewardModel
from rewardloop_server.errors import DeadlinePassed, NotLoadable, QueueFull
from rewardloop_server.metrics import ServerMetrics

log = structlog.get_logger()

LANES = ("production", "trainer")

# A request without a deadline is ordered as if it had this one, so that it cannot starve behind those with one.
_IMPLIED_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Scored:
    """One group's outcome. ``logits``: (responses, heads). Times in seconds."""

    logits: Floats
    queue_s: float
    run_s: float


@dataclass(slots=True, eq=False)
class Group:
    """Rows that wait to be run by one model version, and who waits for them."""

    model: RewardModel
    rows: Sequence[Encoded]
    lane: str
    deadline: float | None
    outcome: asyncio.Future[Scored]
    enqueued: float = field(default_factory=time.monotonic)
    tokens: int = 0
    next_row: int = 0
    first_run: float = 0.0
    run_s: float = 0.0
    parts: list[Floats] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = sum(len(row.ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Slice:
    """The part ``start:stop`` of a group's rows that one batch takes."""

    group: Group
    start: int
    stop: int


class Lane:
    """A bounded queue of groups, earliest deadline first."""

    def __init__(self, name: str, max_tokens: int, metrics: ServerMetrics) -> None:
        self.name = name
        self.tokens = 0
        self._max_tokens = max_tokens
        self._metrics = metrics
        self._order = itertools.count()
        self._heap: list[tuple[float, int, Group]] = []

    def push(self, group: Group) -> None:
        """Raises QueueFull when the lane holds something and the group would not fit beside it."""
        if self.tokens and self.tokens + group.tokens > self._max_tokens:
            raise QueueFull(
                f"the {self.name} queue holds {self.tokens} of {self._max_tokens} tokens", retry_after_ms=200
            )
        due = group.deadline if group.deadline is not None else group.enqueued + _IMPLIED_DEADLINE_S
        heapq.heappush(self._heap, (due, next(self._order), group))
        self._count(group.tokens)

    def head(self, now: float) -> Group | None:
        """The next group worth running: callers that went away are skipped, passed deadlines are answered."""
        while self._heap:
            group = self._heap[0][2]
            if group.outcome.done():
                self.pop()
            elif group.deadline is not None and group.deadline <= now and group.next_row == 0:
                self.pop()
                group.outcome.set_exception(DeadlinePassed("the deadline passed while the request was queued"))
            else:
                return group
        return None

    def take(self, group: Group, budget: int) -> tuple[Slice, int]:
        """Rows of the head group up to ``budget`` tokens, at least one; and how many tokens they have."""
        start, taken = group.next_row, 0
        while group.next_row < len(group.rows):
            size = len(group.rows[group.next_row].ids)
            if taken and taken + size > budget:
                break
            taken += size
            group.next_row += 1
        if group.next_row == len(group.rows):
            self.pop()
        return Slice(group, start, group.next_row), taken

    def pop(self) -> None:
        group = heapq.heappop(self._heap)[2]
        self._count(-group.tokens)

    def oldest_wait(self, now: float) -> float:
        return max((now - group.enqueued for _, _, group in self._heap[:1]), default=0.0)

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self._metrics.queue_tokens.labels(lane=self.name).set(self.tokens)


class Batcher:
    """Two lanes in front of one engine thread; production goes first.

    The trainer lane goes first once its head has waited ``trainer_max_wait_s``, so that it cannot starve.
    """

    def __init__(
        self, *, token_budget: int, lane_tokens: dict[str, int], trainer_max_wait_s: float, metrics: ServerMetrics
    ) -> None:
        self._budget = token_budget
        self._lanes = {name: Lane(name, lane_tokens[name], metrics) for name in LANES}
        self._trainer_max_wait_s = trainer_max_wait_s
        self._metrics = metrics
        self._waiting = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def score(self, model: RewardModel, rows: Sequence[Encoded], lane: str, deadline: float | None) -> Scored:
        """Queue one group and wait for all of its rows. ``deadline`` is on the monotonic clock.

        Raises QueueFull, DeadlinePassed, or NotLoadable when the model fails on the batch.
        """
        group = Group(model, rows, lane, deadline, asyncio.get_running_loop().create_future())
        self._lanes[lane].push(group)
        self._waiting.set()
        return await group.outcome

    async def run(self) -> None:
        """Feed the engine until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = self._next_batch()
            if not batch:
                self._waiting.clear()
                await self._waiting.wait()
                continue
            model = batch[0].group.model
            rows = [row for part in batch for row in part.group.rows[part.start : part.stop]]
            started = time.monotonic()
            try:
                logits, padded = await loop.run_in_executor(self._thread, model.run, rows)
            except Exception as error:  # whatever ONNX Runtime raises fails this batch, not the loop
                log.exception("batch failed", version=model.manifest.version, rows=len(rows))
                for part in batch:
                    if not part.group.outcome.done():
                        part.group.outcome.set_exception(NotLoadable(f"the model failed on this batch: {error}"))
                continue
            self._observe(rows, padded)
            _hand_out(batch, logits, started, time.monotonic() - started)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next_batch(self) -> list[Slice]:
        """Up to ``token_budget`` tokens of rows of one version, in lane and deadline order."""
        now = time.monotonic()
        production, trainer = (self._lanes[name] for name in LANES)
        order = [production, trainer]
        if trainer.head(now) is not None and trainer.oldest_wait(now) > self._trainer_max_wait_s:
            order.reverse()
        batch: list[Slice] = []
        left = self._budget
        for lane in order:
            while left > 0 and (group := lane.head(now)) is not None:
                is_other_version = bool(batch) and group.model is not batch[0].group.model
                if is_other_version or (batch and len(group.rows[group.next_row].ids) > left):
                    break
                part, taken = lane.take(group, left)
                part.group.first_run = part.group.first_run or now
                batch.append(part)
                left -= taken
        return batch

    def _observe(self, rows: Sequence[Encoded], padded: int) -> None:
        real = sum(len(row.ids) for row in rows)
        self._metrics.batch_rows.observe(len(rows))
        self._metrics.batch_tokens.observe(real)
        self._metrics.padding_ratio.observe(1 - real / padded)


def _hand_out(batch: Sequence[Slice], logits: Floats, started: float, run_s: float) -> None:
    at = 0
    for part in batch:
        group, count = part.group, part.stop - part.start
        group.parts.append(logits[at : at + count])
        group.run_s += run_s
        at += count
        if part.stop == len(group.rows) and not group.outcome.done():
            whole = group.parts[0] if len(group.parts) == 1 else np.concatenate(group.parts)
            group.outcome.set_result(Scored(whole, group.first_run - group.enqueued, group.run_s))
