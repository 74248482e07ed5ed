"""One caller sends the heaviest legal load of a method; what becomes of another caller's small requests beside it?

The probe asks 20 times a second for one short pair, alone and beside each load, of which there is at least one for each
method. Every load is bounded in time. A probe may be refused never, and its p99 may be three times that of a probe
alone, or one and a half of the longest runs (`--production-run-ms`) if that is more. Else the status is 1.

    python tests/bench/fairness.py --seconds 15
"""

from __future__ import annotations

import itertools
import math
import threading

import arguments
import grpc
import models
import service
from heaviest import LOADS as HEAVIEST
from heaviest import Load
from wire import Ended, Wire

from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_cli.bench.report import percentile

_SERVICE = "/rewardloop.v1.RewardService/"
_PROBES_PER_S = 20.0
_MOST_UNDER_WAY = 256
_LONGEST_RUNS_S = 1.5 * 0.05


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
    options = parser.parse_args()
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        store = work / f"minilm-{options.precision}"
        service.export(models.encoder_base(work), store, max_length=256, precision=options.precision)
        with service.serving(store, *options.serve_args.split()) as served:
            rows: list[list[object]] = [["the probe beside", "answered", "refused", "p50 ms", "p99 ms", "max ms"]]
            alone = probe(served, options.seconds)
            rows.append(["nothing", *figures(alone)])
            bound_s = max(3 * percentile(sorted(alone.answered_s), 0.99), _LONGEST_RUNS_S)
            unfair = []
            for load, callers in LOADS:
                name = f"{load.name}, {callers} at once"
                seen = beside(served, load, callers, options.seconds)
                rows.append([name, *figures(seen)])
                if seen.refused_s or percentile(sorted(seen.answered_s) or [math.inf], 0.99) > bound_s:
                    unfair.append(name)
            service.print_rows(rows)
    print(f"bound of p99: {1000 * bound_s:.0f} ms; beyond it or refused: {unfair or 'none'}")
    return int(bool(unfair))


def probe(served: service.Service, seconds: float) -> Ended:
    message = group(1, 60).SerializeToString()
    wire = Wire(served.address, f"{_SERVICE}Score")
    try:
        return wire.at_rate(itertools.repeat(message), _PROBES_PER_S, seconds, _MOST_UNDER_WAY)
    finally:
        wire.close()


def beside(served: service.Service, load: Load, callers: int, seconds: float) -> Ended:
    """Probe while another connection, which is another caller, sends the load."""
    data, over = load.message().SerializeToString(), threading.Event()
    with grpc.insecure_channel(served.address, options=[("grpc.max_receive_message_length", -1)]) as channel:

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
        over.wait(1)
        try:
            return probe(served, seconds)
        finally:
            over.set()
            for sender in senders:
                sender.join()


def figures(seen: Ended) -> list[object]:
    answered = sorted(seen.answered_s) or [math.inf]
    return [
        len(seen.answered_s),
        len(seen.refused_s),
        *(1000 * percentile(answered, share) for share in (0.5, 0.99, 1.0)),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
