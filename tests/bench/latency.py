"""What the service adds to one request when it is idle: Score of one 64-token pair against tokenizing and a bare run,
and how much of that an RPC that does nothing costs already (the health service's Check, on the same server). The caller
is a bare socket (`wire.py`): what a client library adds is not the service's.

Each runs in a process of its own with the same weights, threads and spinning; the two alternate in short turns over
the same texts, and the one whose turn it isn't is stopped, for its spinning threads would take the other's cores.

    python tests/bench/latency.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import arguments
import models
import service
from wire import Wire

from rewardloop.formats.store import Manifest
from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_cli.bench.report import percentile

TURN = 10


def run_bare(pipe: Connection, directory: Path, manifest: Manifest, threads: int) -> None:
    """For each pair that comes: its logit, and the seconds that tokenizing and running took. None ends it."""
    from ceiling import Bare

    bare = Bare(directory, manifest, threads=threads)
    while (pair := pipe.recv()) is not None:
        started = time.perf_counter()
        logits = bare.run(bare.lay_out([bare.encode(pair)]))
        pipe.send((float(logits[0].mean()), time.perf_counter() - started))


@contextmanager
def only(running: int, stopped: int) -> Iterator[None]:
    """One process runs while the other is stopped; both run after it."""
    os.kill(stopped, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(stopped, signal.SIGCONT)


def measure(options: argparse.Namespace, served: service.Service, manifest: Manifest, pairs: list[models.Pair]) -> None:
    pipe, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    arguments_of_bare = (theirs, served.version_directory, manifest, options.threads)
    bare = spawn.Process(target=run_bare, args=arguments_of_bare, daemon=True)
    bare.start()
    assert bare.pid is not None
    bare_s: list[float] = []
    score_s: list[float] = []
    outside_s: list[float] = []
    empty_s: list[float] = []
    score = Wire(served.address, "/rewardloop.v1.RewardService/Score")
    check = Wire(served.address, "/grpc.health.v1.Health/Check")

    def ask_bare(pair: models.Pair) -> float:
        pipe.send(pair)
        logit, took = pipe.recv()
        bare_s.append(took)
        return float(logit)

    def ask_service(pair: models.Pair) -> float:
        request = reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text=pair.prompt), responses=[pair.response])
        data, took = score.one(request.SerializeToString())
        score_s.append(took)
        reply = reward_pb2.ScoreResponse.FromString(data)
        timings = reply.timings
        outside_s.append(took - (timings.queue_us + timings.tokenize_us + timings.run_us) / 1e6)
        return float(reply.scores[0].logit)

    def ask_nothing() -> None:
        """After a run of the service, as Score is: with the caches that a run leaves."""
        empty_s.append(check.one(b"")[1])

    until = time.monotonic() + options.seconds
    position = 0
    while time.monotonic() < until or position < 2 * TURN:
        turn = [pairs[(position + i) % len(pairs)] for i in range(TURN)]
        logits: list[list[float]] = []
        for ask, running, stopped in ((ask_bare, bare.pid, served.pid), (ask_service, served.pid, bare.pid)):
            with only(running, stopped):
                time.sleep(0.2)
                ask(pairs[0])  # the first after a stop finds cold caches
                seen = bare_s if ask is ask_bare else score_s
                seen.pop()
                logits.append([])
                for pair in turn:
                    time.sleep(options.pause)
                    logits[-1].append(ask(pair))
                    if ask is ask_service:
                        time.sleep(options.pause)
                        ask_nothing()
        outside_s.pop(-TURN - 1)
        worst = max(abs(a - b) for a, b in zip(*logits, strict=True))
        if worst > 1e-3:
            raise SystemExit(f"the service's logits differ from the bare session's by {worst}")
        position += TURN
        if position == TURN:  # the first turn warms both up
            for each in (bare_s, score_s, outside_s, empty_s):
                each.clear()
    pipe.send(None)
    bare.join(10)
    report(options, bare_s, score_s, outside_s, empty_s)


def report(
    options: argparse.Namespace,
    bare_s: list[float],
    score_s: list[float],
    outside_s: list[float],
    empty_s: list[float],
) -> None:
    print(
        f"{len(score_s)} requests of 1 pair of 64 tokens, {options.precision}, one at a time, "
        f"{1000 * options.pause:.0f} ms after the last"
    )
    rows: list[list[object]] = [["ms", "p50", "p90", "p99"]]
    for name, values in (
        ("tokenizing + bare session.run", bare_s),
        ("Score over gRPC", score_s),
        ("of it outside queue, tokenize, run", outside_s),
        ("an RPC that does nothing", empty_s),
    ):
        rows.append([name, *(1000 * percentile(sorted(values), share) for share in (0.5, 0.9, 0.99))])
    service.print_rows(rows)
    for share in (0.5, 0.99):
        difference = percentile(sorted(score_s), share) - percentile(sorted(bare_s), share)
        empty = percentile(sorted(empty_s), share)
        print(
            f"added at p{100 * share:.0f}: {1000 * difference:.3f} ms, "
            f"{1000 * (difference - empty):.3f} ms above an RPC that does nothing"
        )


def main() -> None:
    parser = arguments.parser(__doc__, seconds=60.0)
    parser.add_argument("--threads", type=int, default=0, help="ONNX Runtime threads of both; 0: one a core")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between requests: threads go to sleep")
    options = parser.parse_args()
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        store = work / f"minilm-{options.precision}"
        manifest = service.export(models.encoder_base(work), store, max_length=256, precision=options.precision)
        # 64 tokens each, with the 3 special ones.
        pairs = [models.Pair(str(g.prompt), g.responses[0]) for g in models.groups(20, 1, 41, 256)]
        serve_args = ("--intra-op-threads", str(options.threads), *options.serve_args.split())
        with service.serving(store, *serve_args) as served:
            measure(options, served, manifest, pairs)


if __name__ == "__main__":
    main()
