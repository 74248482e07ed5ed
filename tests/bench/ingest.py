"""Signals a second through the FeedbackService, beside bare redis-py on the same redis-server, in turns.

Client, server and Redis share the machine; with "bare socket" the caller is `wire.py`, which costs next to nothing.
Every signal is acknowledged, and counted in the stream at the end.

    python tests/bench/ingest.py --seconds 10 [--fsync always]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import arguments
import psutil
import redis
import service
from wire import Wire

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.reward_graphs import publish_sum_version

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2
from rewardloop_client import AsyncRewardloopClient, Feedback, RecordResult

_BUILT_AHEAD = 2000  # events whose ids alone change from then on: making them is the caller's work
_PIPELINED = 500
_RECORD, _CHECK = "/rewardloop.v1.FeedbackService/Record", "/grpc.health.v1.Health/Check"
_PIPELINE, _ONE_BY_ONE = "redis-py, XADD pipelined", "redis-py, XADD one by one"
_PROMPT = "How do I take the back cover off without breaking the clips that hold it in place?"
_RESPONSES = (
    "Warm the edge with a hair dryer for a minute, then slide a plastic card along the seam; the clips give way. " * 2,
    "You cannot do that yourself. Take it to a service point near you, and they will open it for a small fee. " * 2,
)


def main() -> None:
    parser = arguments.parser(__doc__, seconds=10.0)
    parser.add_argument(
        "--fsync", choices=("everysec", "always"), default="everysec", help="of Redis's append-only file"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, default=64, help="concurrent calls of Record (default 64)")
    parser.add_argument("--batch", type=int, default=500, help="events in a RecordBatch (default 500)")
    parser.add_argument("--batches", type=int, default=4, help="concurrent RecordBatch calls (default 4)")
    parser.add_argument("--only", default="", help="those of the ways whose name contains this, for a profile")
    options = parser.parse_args()
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        store = work / "sum"
        if not ModelStore(store).versions("reward"):
            publish_sum_version(ModelStore(store))
        with service.serving(store, *options.serve_args.split(), fsync=options.fsync) as served:
            measure(served, options)


def measure(served: service.Service, options: argparse.Namespace) -> None:
    """Every way in turn, several times; prints the median of its rates and of the server's CPU time a signal."""
    ways: dict[str, Callable[[], Iterator[int]]] = {
        _PIPELINE: lambda: bare(served, options.seconds, _PIPELINED),
        f"RecordBatch of {options.batch}, {options.batches} at a time": lambda: calls(
            served, options.seconds, options.batches, options.batch
        ),
        _ONE_BY_ONE: lambda: bare(served, options.seconds, 1),
        f"Record, {options.callers} at a time": lambda: calls(served, options.seconds, options.callers, 1),
        f"Record, {options.callers} at a time, bare socket": lambda: over_wire(
            served, options.seconds, options.callers, _RECORD, records()
        ),
        "Record, one at a time": lambda: calls(served, options.seconds, 1, 1),
        f"an RPC that does nothing, {options.callers} at a time": lambda: calls(
            served, options.seconds, options.callers, 0
        ),
        f"an RPC that does nothing, {options.callers} at a time, bare socket": lambda: over_wire(
            served, options.seconds, options.callers, _CHECK, itertools.repeat(b"")
        ),
    }
    if options.only:
        ways = {name: run for name, run in ways.items() if options.only in name}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    sizes: dict[str, list[float]] = {name: [] for name in ways}
    server = psutil.Process(served.pid)
    with redis.Redis.from_url(served.redis_url) as client:
        for name, run in [*ways.items()] * options.rounds:
            client.flushall()
            groups, before, started, count = writes(served), cpu_s(server), time.perf_counter(), 0
            for acknowledged in run():
                count += acknowledged
            seconds = time.perf_counter() - started
            rates[name].append(count / seconds)
            cpu[name].append((cpu_s(server) - before) / count)
            written = [after - earlier for after, earlier in zip(writes(served), groups, strict=True)]
            sizes[name].append(written[0] / written[1] if written[1] else 0.0)
            if "does nothing" not in name and client.xlen(keys.FEEDBACK_STREAM) != count:
                raise SystemExit(f"{name}: {count} acknowledged, {client.xlen(keys.FEEDBACK_STREAM)} in the stream")
    middle = {name: statistics.median(values) for name, values in rates.items()}
    rows: list[list[object]] = [["", "signals/s", "least", "most", "server CPU, us", "a write", "of redis-py"]]
    for name in ways:
        beside = _PIPELINE if name.startswith("RecordBatch") else _ONE_BY_ONE
        is_ours = name.startswith("Record")
        size = f"{statistics.median(sizes[name]):.1f}" if is_ours else ""
        ratio = f"{middle[name] / middle[beside]:.2f}" if is_ours and beside in middle else ""
        used = f"{statistics.median(cpu[name]) * 1e6:.0f}" if "redis-py" not in name else ""
        rows.append([name, round(middle[name]), round(min(rates[name])), round(max(rates[name])), used, size, ratio])
    print(
        f"appendfsync {options.fsync}, {options.rounds} rounds of {options.seconds:g} s; what was acknowledged is there"
    )
    service.print_rows(rows)


def writes(served: service.Service) -> tuple[float, float]:
    """Signals that went to Redis, and the writes that they went in."""
    found = {sample.name: sample.value for sample in served.samples()}
    name = "rewardloop_feedback_group_events"
    return found.get(f"{name}_sum", 0.0), found.get(f"{name}_count", 0.0)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def bare(served: service.Service, seconds: float, pipelined: int) -> Iterator[int]:
    """Append the bytes of such events with nothing around it; yields how many at a time."""
    events = [{keys.EVENT_FIELD: event.SerializeToString(), keys.ID_FIELD: event.event_id} for event in built()]
    end = time.monotonic() + seconds
    with redis.Redis.from_url(served.redis_url) as client:
        for start in itertools.cycle(range(0, _BUILT_AHEAD, pipelined)):
            if time.monotonic() > end:
                return
            if pipelined == 1:
                client.xadd(keys.FEEDBACK_STREAM, events[start])  # type: ignore[arg-type]
                yield 1
                continue
            with client.pipeline(transaction=False) as pipe:
                for event in events[start : start + pipelined]:
                    pipe.xadd(keys.FEEDBACK_STREAM, event)  # type: ignore[arg-type]
                yield len(pipe.execute())


def calls(served: service.Service, seconds: float, concurrent: int, events: int) -> Iterator[int]:
    """Record signals by so many concurrent callers, each one after the other, ``events`` in a call."""
    yield asyncio.run(_call(served.address, seconds, concurrent, events))


async def _call(address: str, seconds: float, concurrent: int, events: int) -> int:
    numbers = itertools.count()
    ready = built()
    end = time.monotonic() + seconds

    async def call(client: AsyncRewardloopClient) -> int:
        acknowledged = 0
        while time.monotonic() < end:
            if events == 0:
                await client.health("")
                acknowledged += 1
                continue
            if events == 1:
                event = ready[(number := next(numbers)) % _BUILT_AHEAD]
                event.event_id = f"event-{number:08d}"
                results: list[object] = [await client.record(event)]
            else:
                batch = list(itertools.islice(numbers, events))
                chosen = [ready[number % _BUILT_AHEAD] for number in batch]
                for event, number in zip(chosen, batch, strict=True):
                    event.event_id = f"event-{number:08d}"
                results = [*await client.record_batch(chosen)]
            for result in results:
                if not isinstance(result, RecordResult) or result.duplicate:
                    raise SystemExit(f"not recorded: {result}")
            acknowledged += len(results)
        return acknowledged

    async with AsyncRewardloopClient(address, timeout_s=60) as client:
        return sum(await asyncio.gather(*(call(client) for _ in range(concurrent))))


def over_wire(
    served: service.Service, seconds: float, callers: int, method: str, messages: Iterator[bytes]
) -> Iterator[int]:
    """As `calls`, by a caller that costs next to nothing. Raises SystemExit when a call is refused."""
    wire = Wire(served.address, method)
    wire.closed_loop(messages, callers, seconds)
    wire.close()
    if wire.ended.refused_s:
        raise SystemExit(f"{len(wire.ended.refused_s)} calls of {method} were refused")
    yield len(wire.ended)


def records() -> Iterator[bytes]:
    """Requests of Record, for ever, each with a signal of its own."""
    ready = built()
    for number in itertools.count():
        event = ready[number % _BUILT_AHEAD]
        event.event_id = f"event-{number:08d}"
        yield feedback_pb2.RecordRequest(event=event).SerializeToString()


def built() -> list[feedback_pb2.FeedbackEvent]:
    return [
        Feedback.choice(
            prompt=_PROMPT,
            responses=_RESPONSES,
            chosen=number % 2,
            rejected=1 - number % 2,
            event_id=f"event-{number:08d}",
            annotator_id=f"user-{number % 97}",
            tags={"channel": "app"},
        )
        for number in range(_BUILT_AHEAD)
    ]


if __name__ == "__main__":
    main()
