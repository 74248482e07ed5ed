"""Takes signals: into the stream while Redis accepts them, else into the spool, if there is one.

While a signal is in the spool, later signals go there too, until it is drained. So signals reach the stream in the
order in which they were acknowledged. If Redis accepts connections but never answers, the first call notices at its
timeout, and until Redis answers again the other calls are refused or spooled at once.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from redis.exceptions import RedisError

from rewardloop.v1 import feedback_pb2, policy_pb2
from rewardloop_server.calls.errors import RedisUnavailable, RewardloopError, StoreFull
from rewardloop_server.feedback.erasures import ErasureDesk, Spooled
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.signal import Signal, stored
from rewardloop_server.feedback.spool import Spool
from rewardloop_server.feedback.stream import ERASED, Appended, FeedbackStream, entry_of
from rewardloop_server.observe.metrics import ServerMetrics

log = structlog.get_logger()

_DRAINED_AT_ONCE = 100
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 2.0
# If a refusal takes longer than this, other calls are not made to wait for theirs.
_SLOW_S = 0.2
_SPOOLED = Appended(stream_id="", is_duplicate=False)

Event = feedback_pb2.FeedbackEvent
# Fills an event in from its generation, and returns what is wrong with it then, or None.
FillIn = Callable[[Event, policy_pb2.Generation | None], RewardloopError | None]


class Intake:
    """Appends signals to the stream, or to the spool while Redis is away.

    With a spool, `open` must be called first, and `upkeep` must run beside.

    Args:
        stream: The stream in Redis.
        generations: The log from which events are filled in that name a generation.
        fill_in: Fills an event in.
        metrics: Where the spool's state is shown.
        spool: Keeps signals while Redis is away. None if they are refused then.
        max_bytes: The most that the spool takes of its disk.
        erasures: Tells which signals were erased, which the spool does not give to the stream.
    """

    def __init__(
        self,
        stream: FeedbackStream,
        generations: GenerationLog,
        fill_in: FillIn,
        metrics: ServerMetrics,
        spool: Spool | None = None,
        max_bytes: int = 0,
        erasures: ErasureDesk | None = None,
    ) -> None:
        self._stream = stream
        self._generations = generations
        self._fill_in = fill_in
        self._metrics = metrics
        self._spool = spool
        self._max_bytes = max_bytes
        self.erasures = erasures or ErasureDesk(stream.redis)
        self._draining = asyncio.Lock()
        self._is_away = False
        self._oldest_at: float | None = None
        self._waiting: list[tuple[list[bytes], asyncio.Future[None]]] = []
        self._waiting_bytes = 0
        self._committing: asyncio.Task[None] | None = None
        self._spooled = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "spool")  # one thread, because the spool is for one thread at a time

    async def append(self, signals: Sequence[Signal]) -> list[Appended | RewardloopError]:
        """Append the signals in order, and return for each its place, or why it is refused.

        A signal that goes to the spool has no stream id, and is not held to the bounds of its annotator and caller.

        Raises:
            RedisUnavailable, StoreFull: Some events may have been appended. Sending all of them again appends the rest.
        """
        if not self._is_away and (self._spool is None or self._spool.is_empty):
            started = time.monotonic()
            try:
                return await self._append_unless_erased(signals)
            except (RedisUnavailable, StoreFull) as error:
                self._is_away = self._is_away or time.monotonic() - started > _SLOW_S
                if self._spool is None:
                    raise
                log.warning("Redis does not take signals: they are spooled", error=str(error))
        if self._spool is None:
            raise RedisUnavailable("Redis does not answer")
        await self._write([signal.data for signal in signals])
        return [_SPOOLED] * len(signals)

    async def append_to_stream(self, signals: Sequence[Signal]) -> list[Appended | RewardloopError]:
        """Append signals that their sender keeps until they are in the stream. They never go to the spool.

        Returns for each its place, or why it is refused.

        Raises:
            RedisUnavailable, StoreFull: Some may have been appended. Sending all of them again appends the rest.
        """
        return await self._stream.append(signals) if signals else []

    async def retract(self, import_id: str, caller: str, age_s: float | None = None) -> str:
        """Append that a caller takes an import back, and return its place.

        ``age_s``: how long ago its first signal was given, by which the trainer looks only where it can be; None if
        that is not known.

        Raises RedisUnavailable, also while signals wait in the spool, which may be of this import; or StoreFull.
        """
        if self._spool is not None and not self._spool.is_empty:
            raise RedisUnavailable("signals wait in the spool, which an import is taken back after: try again")
        return await self._stream.retract(import_id, caller, age_s)

    async def generations(self, named: Iterable[str], caller: str = "") -> Mapping[str, policy_pb2.Generation] | None:
        """Return the generations that events of ``caller`` name, by id.

        None means that Redis is away and there is a spool: the events are to be appended as they are, and `drain` fills
        them in. Raises RedisUnavailable if there is no spool.
        """
        wanted = set(named)
        if wanted and not self._is_away:
            started = time.monotonic()
            try:
                return await self._generations.get(wanted, caller)
            except RedisUnavailable:
                self._is_away = time.monotonic() - started > _SLOW_S
                if self._spool is None:
                    raise
        if wanted and self._spool is None:
            raise RedisUnavailable("Redis does not answer")
        return None if wanted else {}

    async def is_reachable(self) -> bool:
        """Return whether signals are taken right now.

        This must be called again and again, because it is what notices that Redis is back.
        """
        started = time.monotonic()
        is_there = await self._stream.is_reachable()
        self._is_away = not is_there and time.monotonic() - started > _SLOW_S
        return is_there or (self._spool is not None and self._spool.size_bytes < self._max_bytes)

    async def open(self) -> None:
        """Open the spool, and find what an earlier process left in it. Raises SpoolInUse or OSError."""
        if self._spool is None:
            return
        await self._in_thread(self._spool.open)
        await self._find_oldest()
        self._metrics.spool_oldest_seconds.set_function(self._age_s)

    def upkeep(self) -> list[Coroutine[Any, Any, None]]:
        """Return what runs beside until cancelled: draining the spool, if there is one, and erasing."""
        return [*([self.drain()] if self._spool else []), self.erasures.run(self.erase_spooled)]

    async def drain(self) -> None:
        """Move spooled signals to the stream whenever Redis takes them, until cancelled."""
        pause = _FIRST_PAUSE_S
        while True:
            await self._spooled.wait()
            try:
                async with self._draining:
                    await self._drain_some()
                pause = _FIRST_PAUSE_S
            except (RewardloopError, RedisError, OSError) as error:
                log.info("the spool waits", error=str(error), retry_s=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_S)

    async def erase_spooled(self, is_erased: Callable[[bytes], bool]) -> Spooled:
        """Erase from the spool the serialized events for which ``is_erased`` is true. Raises OSError."""
        if self._spool is None:
            return Spooled(0)
        async with self._draining:
            gone: int = await self._in_thread(self._spool.erase, is_erased)
            unsearched: list[str] = await self._in_thread(self._spool.unsearched)
            await self._find_oldest()
        return Spooled(gone, tuple(f"{path} is damaged and was not searched: delete it by hand" for path in unsearched))

    async def close(self) -> None:
        """Close the spool. What is in it stays for the next process."""
        if self._committing is not None:
            await self._committing
        if self._spool is not None:
            await self._in_thread(self._spool.close)
        self._thread.shutdown()

    async def _drain_some(self) -> None:
        assert self._spool is not None
        payloads: list[bytes] = await self._in_thread(self._spool.read, _DRAINED_AT_ONCE)
        signals = await self._not_erased([stored(payload) for payload in payloads])
        bare = [each for each in signals if each.event.generation_id and not each.event.responses]
        known: dict[tuple[str, str], policy_pb2.Generation] = {}
        for caller in {each.sender.caller for each in bare}:
            named = {each.event.generation_id for each in bare if each.sender.caller == caller}
            found = await self._generations.get(named, caller)
            known |= {(generation_id, caller): generation for generation_id, generation in found.items()}
        good = []
        for signal in signals:
            event = signal.event
            is_bare = bool(event.generation_id and not event.responses)
            generation = known.get((event.generation_id, signal.sender.caller))
            if is_bare and (problem := self._fill_in(event, generation)):
                await self._bury(signal, problem)
            else:
                good.append(signal)
        if good:
            outcomes = await self._stream.append_entries([entry_of(each) for each in good])
            for signal, outcome in zip(good, outcomes, strict=True):
                if isinstance(outcome, RewardloopError):
                    await self._bury(signal, outcome)
        await self._in_thread(self._spool.drop, payloads)
        await self._find_oldest()
        if self._spool.is_empty:
            log.info("the spool is drained")

    async def _append_unless_erased(self, signals: Sequence[Signal]) -> list[Appended | RewardloopError]:
        gone = await self.erasures.erased_among([(each.event.event_id, each.sender.caller) for each in signals])
        if not any(gone):
            return await self._stream.append(signals)
        kept = iter(
            await self._stream.append([each for each, is_gone in zip(signals, gone, strict=True) if not is_gone])
        )
        return [ERASED if is_gone else next(kept) for is_gone in gone]

    async def _not_erased(self, signals: list[Signal]) -> list[Signal]:
        """Leave out what was erased since it was spooled."""
        await self.erasures.refresh()
        if not (known := self.erasures.known).all:
            return signals
        left = [each for each in signals if not known.of(Event.FromString(each.data))]
        gone = await self.erasures.erased_among([(each.event.event_id, each.sender.caller) for each in left])
        return [each for each, is_gone in zip(left, gone, strict=True) if not is_gone]

    async def _bury(self, signal: Signal, problem: RewardloopError) -> None:
        await self._stream.bury(signal.data, problem.message)
        log.warning("a spooled signal became a dead letter", event_id=signal.event.event_id, reason=problem.message)

    async def _write(self, payloads: list[bytes]) -> None:
        """Join the next write of the spool. Calls that come during a write share the sync of the next one."""
        assert self._spool is not None
        size = sum(map(len, payloads))
        if self._spool.size_bytes + self._waiting_bytes + size > self._max_bytes:
            raise StoreFull("Redis does not take signals and the spool is full")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((payloads, done))
        self._waiting_bytes += size
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())
        await done

    async def _commit(self) -> None:
        assert self._spool is not None
        try:
            while self._waiting:
                batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
                try:
                    await self._in_thread(self._spool.write, [p for payloads, _ in batch for p in payloads])
                except OSError as error:
                    log.error("the spool cannot be written", error=str(error))
                    for _, done in batch:
                        if not done.done():
                            done.set_exception(StoreFull(f"the spool cannot be written: {error.strerror}"))
                    continue
                for _, done in batch:
                    if not done.done():  # it is done if its caller went away
                        done.set_result(None)
                self._oldest_at = self._oldest_at or time.time()
                self._report()
        finally:
            self._committing = None

    async def _find_oldest(self) -> None:
        """Note when the oldest spooled signal arrived, and update the metrics."""
        assert self._spool is not None
        oldest = await self._in_thread(self._spool.read, 1)
        self._oldest_at = Event.FromString(oldest[0]).arrival_time.ToNanoseconds() / 1e9 if oldest else None
        self._report()

    def _report(self) -> None:
        """Update the metrics, and tell `drain` whether there is something to do."""
        assert self._spool is not None
        self._metrics.spool_events.set(self._spool.events)
        self._metrics.spool_bytes.set(self._spool.size_bytes)
        if self._spool.is_empty:
            self._spooled.clear()
        else:
            self._spooled.set()

    def _age_s(self) -> float:
        return 0.0 if self._oldest_at is None else max(0.0, time.time() - self._oldest_at)

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, functools.partial(work, *args))
