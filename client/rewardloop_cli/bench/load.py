"""Makes the load of bench: sends requests in a closed or an open loop over one connection, and notes the outcomes.

Requests are ready bytes on raw gRPC calls, because the generator shares its cores with a server on the same machine.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from rewardloop.v1 import reward_pb2
from rewardloop_cli.bench.calls import Stream, Unary
from rewardloop_cli.bench.seen import Seen
from rewardloop_cli.bench.texts import Payloads
from rewardloop_cli.connect import channel_access
from rewardloop_cli.failures import UsageError
from rewardloop_client import Overloaded
from rewardloop_client import _calls as calls
from rewardloop_client._connection import OPTIONS, targets

# An open loop does not slow down by itself. Beyond this many unanswered requests it counts them instead of sending.
MAX_IN_FLIGHT = 10_000
_LONGEST_PAUSE_S = 1.0


Watch = Callable[[Seen], None]


class Load:
    """Sends ``payloads`` over one connection. It is an asynchronous context manager.

    Raises:
        UsageError: ``server`` is several host names.
        InvalidAddress: ``server`` is malformed.
    """

    def __init__(self, server: str, payloads: Payloads, timeout_s: float, stop: asyncio.Event, watch: Watch) -> None:
        found = targets(server)
        if len(found) > 1:
            raise UsageError("give bench one host name, or IP addresses, over which gRPC spreads the calls")
        self._target = found[0]
        self._payloads = payloads
        self._next = payloads.source()
        self._timeout_s = timeout_s
        self._stop = stop
        self._watch = watch

    async def __aenter__(self) -> Load:
        access = channel_access()
        self._channel = access.open_aio(self._target, OPTIONS)
        token = access.metadata()
        score = self._channel.unary_unary(calls.SCORE, None, reward_pb2.ScoreResponse.FromString)
        batch = self._channel.unary_unary(calls.SCORE_BATCH, None, reward_pb2.ScoreBatchResponse.FromString)
        stream = self._channel.stream_stream(calls.SCORE_STREAM, None, reward_pb2.ScoreStreamResponse.FromString)
        self._score, self._batch, self._stream = (partial(each, metadata=token) for each in (score, batch, stream))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def closed(self, callers: int, warm_up_s: float, seconds: float) -> Seen:
        """Keep ``callers`` requests in flight: each is followed by the next one once it is answered.

        A refused caller waits as long as the server asks, but at most a second.
        """
        seen = _window(warm_up_s, seconds)
        async with self._sender(seen) as send:

            async def call() -> None:
                while time.perf_counter() < seen.end and not self._stop.is_set():
                    error = await send(time.perf_counter())
                    if error is not None:
                        await asyncio.sleep(min(error.retry_after_s or 0.01, _LONGEST_PAUSE_S))

            await self._watched(seen, asyncio.gather(*(call() for _ in range(callers))))
        return seen

    async def open(self, rate: float, warm_up_s: float, seconds: float, seed: int = 0) -> Seen:
        """Send requests at random (Poisson) times, ``rate`` a second, without waiting for earlier answers.

        Latency counts from when a request was due, so that it includes the delay of a late generator or a stalled
        server.
        """
        loop = asyncio.get_running_loop()
        seen = _window(warm_up_s, seconds)
        in_flight: set[asyncio.Task[Any]] = set()
        finished = asyncio.Event()
        async with self._sender(seen) as send:

            def arrive(due: float) -> None:
                if seen.start <= due < seen.end:
                    seen.late_s.append(time.perf_counter() - due)
                if len(in_flight) >= MAX_IN_FLIGHT:
                    seen.failures["NOT_SENT"] += 1
                    return
                task = asyncio.ensure_future(send(due))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)

            def clock() -> None:
                # It runs in a thread of its own, because the timers of the event loop are exact only to a millisecond.
                chance, due = random.Random(seed), time.perf_counter()
                while (due := due + chance.expovariate(rate)) < seen.end and not self._stop.is_set():
                    time.sleep(max(0.0, due - time.perf_counter()))
                    loop.call_soon_threadsafe(arrive, due)
                loop.call_soon_threadsafe(finished.set)

            async def arrivals() -> None:
                threading.Thread(target=clock, daemon=True, name="arrivals").start()
                await finished.wait()
                if in_flight:
                    await asyncio.wait(in_flight)

            await self._watched(seen, arrivals())
        return seen

    async def _watched(self, seen: Seen, work: Awaitable[Any]) -> None:
        """Run ``work``, show progress, and measure the CPU time of the window."""
        task = asyncio.ensure_future(work)
        cpu_started: float | None = None
        wall_started = seen.start
        while not task.done():
            now = time.perf_counter()
            if cpu_started is None and now >= seen.start:
                cpu_started, wall_started = time.process_time(), now
            if self._stop.is_set() and seen.end > now:
                seen.end = max(now, seen.start)
            self._watch(seen)
            await asyncio.wait([task], timeout=0.25)
        await task
        ended = time.perf_counter()
        if cpu_started is not None and ended > wall_started:
            share = (time.process_time() - cpu_started) / (ended - wall_started)
            seen.cpu_s = share * max(0.0, seen.end - seen.start)

    def _sender(self, seen: Seen) -> Unary | Stream:
        if self._payloads.rpc == "stream":
            return Stream(self._stream, self._next, self._timeout_s, seen)
        return Unary(self._batch if self._payloads.rpc == "batch" else self._score, self._next, self._timeout_s, seen)

    async def probe(self) -> None:
        """Send one request. Raises RewardloopError if it fails, unless the queue is full, which passes."""
        seen = _window(0.0, self._timeout_s)
        async with self._sender(seen) as send:
            error = await send(time.perf_counter())
        if error is not None and not isinstance(error, Overloaded):
            raise error


def _window(warm_up_s: float, seconds: float) -> Seen:
    start = time.perf_counter() + warm_up_s
    return Seen(start, start + seconds)
