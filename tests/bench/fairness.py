"""One caller sends the heaviest legal load of a method; what becomes of another caller's small requests beside it?

The probe asks 20 times a second for one short pair, alone and beside each load, of which there is at least one for each
method. Every load is bounded in time. A probe may be refused never, and its p99 may be three times that of a probe
alone, or one and a half of the longest run if that is more. Else the status is 1. The longest run is one row of as many
tokens as the model takes, measured beside another such run; `--production-run-ms` bounds others.

    python tests/bench/fairness.py --seconds 15
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import arguments
import grpc
import models
import service
from heaviest import LOADS as HEAVIEST
from heaviest import Load
from wire import Ended, Wire

from rewardloop.v1 import common_pb2, reward_pb2, reward_pb2_grpc
from rewardloop_cli.bench.report import percentile

_SERVICE = "/rewardloop.v1.RewardService/"
_PROBES_PER_S = 20.0
_MOST_UNDER_WAY = 256
_AHEAD_S = 6.0  # in which a process starts and its load begins
_PATIENCE_S = 3.0
_MAX_LENGTH = 256  # tokens
_MEASURED_S = 5.0  # for which the longest run is measured
_STREAMS = 2  # runs at once, by default
_RUN_S = 0.05  # the default of --production-run-ms


def group(responses: int, size: int) -> reward_pb2.ScoreRequest:
    text = ("the quick brown fox jumps over the lazy dog " * (size // 44 + 1))[:size]
    return reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="Why?"), responses=[text] * responses)


# A load and its callers at once.
LOADS: tuple[tuple[Load, int], ...] = (
    (Load("Score, 64 responses of 78 KiB", f"{_SERVICE}Score", lambda: group(64, 78 * 1024)), 4),
    (Load("Score, 256 responses of 1.8 kB", f"{_SERVICE}Score", lambda: group(256, 1800)), 4),
    (Load("Score, one text of 256 KiB", f"{_SERVICE}Score", lambda: group(1, 256 * 1024)), 32),
    (
        Load(
            "ScoreBatch, 256 groups of 16 responses of 1.8 kB",
            f"{_SERVICE}ScoreBatch",
            lambda: reward_pb2.ScoreBatchRequest(groups=[group(16, 1800)] * 256),
        ),
        8,
    ),
    *((load, 8) for load in HEAVIEST),
)


def main() -> int:
    parser = arguments.parser(__doc__, seconds=15.0)
    parser.add_argument("--only", default="", help="loads with this in their names")
    options = parser.parse_args()
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        store = work / f"minilm-{options.precision}"
        service.export(models.encoder_base(work), store, max_length=_MAX_LENGTH, precision=options.precision)
        with service.serving(store, *options.serve_args.split()) as served:
            rows: list[list[object]] = [["the probe beside", "answered", "refused", "p50 ms", "p99 ms", "max ms"]]
            alone = probe(served, options.seconds)
            rows.append(["nothing", *figures(alone)])
            bound_s = max(3 * percentile(sorted(alone.answered_s), 0.99), 1.5 * longest_run_s(served.address))
            unfair = []
            for load, callers in LOADS:
                if options.only not in load.name:
                    continue
                name = f"{load.name}, {callers} at once"
                seen = beside(served, load, callers, options.seconds)
                rows.append([name, *figures(seen)])
                print(*rows[-1], flush=True)
                if seen.refused_s or percentile(sorted(seen.answered_s) or [math.inf], 0.99) > bound_s:
                    unfair.append(name)
            service.print_rows(rows)
    print(f"bound of p99: {1000 * bound_s:.0f} ms; beyond it or refused: {unfair or 'none'}")
    return int(bool(unfair))


def longest_run_s(address: str) -> float:
    """Return the median seconds of a run of the longest row, while another such run shares the device."""
    message = group(1, 16 * _MAX_LENGTH)
    over = time.monotonic() + _MEASURED_S

    def keep_scoring(_: int) -> list[float]:
        runs_s = []
        with grpc.insecure_channel(address) as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            while time.monotonic() < over:
                runs_s.append(stub.Score(message).timings.run_us / 1e6)
        return runs_s

    with ThreadPoolExecutor(_STREAMS) as callers:
        runs_s = [run_s for runs in callers.map(keep_scoring, range(_STREAMS)) for run_s in runs]
    return max(_STREAMS * _RUN_S, percentile(sorted(runs_s), 0.5))


def probe(served: service.Service, seconds: float) -> Ended:
    message = group(1, 60).SerializeToString()
    wire = Wire(served.address, f"{_SERVICE}Score")
    try:
        return wire.at_rate(itertools.repeat(message), _PROBES_PER_S, seconds, _MOST_UNDER_WAY)
    finally:
        wire.close()


def beside(served: service.Service, load: Load, callers: int, seconds: float) -> Ended:
    """Probe while another process, which is another caller, sends the load."""
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    sender = context.Process(target=send, args=(served.address, load.name, callers, over), daemon=True)
    sender.start()
    time.sleep(_AHEAD_S)
    try:
        return probe(served, seconds)
    finally:
        over.set()
        sender.join(_PATIENCE_S)
        sender.kill()


def send(address: str, name: str, callers: int, over: Event) -> None:
    """Send the load of this name until it is over. The server goes first, as if the load came from another machine."""
    step_back()
    (load,) = (load for load, _ in LOADS if load.name == name)
    data = load.message().SerializeToString()
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:

        def keep_sending() -> None:
            while not over.is_set():
                try:
                    load.send(channel, data, 60.0 if not load.is_stream else 2.0)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # type: ignore[attr-defined]
                        raise
                    over.wait(0.02)

        senders = [threading.Thread(target=keep_sending) for _ in range(callers)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()


def step_back() -> None:
    """Leave the processor to the server, whose engine has the niceness 19, by a scheduling group of its own."""
    os.nice(19)
    os.setsid()
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19", encoding="ascii")


def figures(seen: Ended) -> list[object]:
    answered = sorted(seen.answered_s) or [math.inf]
    return [
        len(seen.answered_s),
        len(seen.refused_s),
        *(1000 * percentile(answered, share) for share in (0.5, 0.99, 1.0)),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
