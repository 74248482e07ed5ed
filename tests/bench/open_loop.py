"""Latency under traffic that does not wait: Poisson arrivals at 70% of saturation, alone and beside a busy trainer.

Prints p99 over p50, and the production lane's p99 with the trainer's lane saturated over that without; the two
alternate in one run.

    python tests/bench/open_loop.py --mix short
"""

from __future__ import annotations

import argparse
import signal
import statistics
import tempfile
from pathlib import Path

import arguments
import models
import service

COLUMNS = ("round", "trainer lane", "answered", "failed", "p50 ms", "p90 ms", "p99 ms", "max ms")


def main() -> None:
    parser = arguments.parser(__doc__, seconds=20.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.7, help="of the saturation that is offered (default 0.7)")
    parser.add_argument("--mix", choices=("short", "real"), default="short")
    parser.add_argument("--data", type=Path, default=None, help="directory with alpacaeval_test.jsonl.gz")
    parser.add_argument("--trainer-callers", type=int, default=64, help="requests that the trainer's lane holds")
    options = parser.parse_args()
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        store = work / f"minilm-{options.precision}"
        service.export(models.encoder_base(work), store, max_length=256, precision=options.precision)
        texts = models.write_rows(
            work / f"{options.mix}.jsonl", models.as_groups(models.pairs(options.mix, 1024, options.data))
        )
        timing = ("--seconds", str(options.seconds), "--warm-up", str(options.warm_up), "--texts", str(texts))
        with service.serving(store, *options.serve_args.split()) as served:
            saturation = service.load(served, "--callers", "64", *timing)["requests_per_s"]
            rate = options.share * saturation
            print(f"{options.mix}, {options.precision}: saturation {saturation:.1f} requests/s, offered {rate:.1f}/s")
            offered = ("--rate", str(rate), *timing)
            alone: list[service.Json] = []
            beside: list[service.Json] = []
            rows: list[list[object]] = [
                ["round", "trainer lane", "answered", "failed", "p50 ms", "p90 ms", "p99 ms", "max ms"]
            ]
            for number in range(1, options.rounds + 1):
                for runs, name in ((alone, "idle"), (beside, "saturated")):
                    is_alone = name == "idle"
                    run = service.load(served, *offered) if is_alone else with_trainer(served, options, offered)
                    runs.append(run["latency_ms"])
                    figures = [run["latency_ms"][each] for each in ("p50", "p90", "p99", "max")]
                    rows.append([number, name, run["answered"], sum(run["failures"].values()), *figures])
            service.print_rows(rows)
    p99 = statistics.median(run["p99"] for run in alone)
    print(f"p99 / p50 at {options.share:.0%}: {statistics.median(run['p99'] / run['p50'] for run in alone):.2f}")
    print(f"p99 with the trainer's lane saturated / without: {statistics.median(r['p99'] for r in beside) / p99:.2f}")


def with_trainer(served: service.Service, options: argparse.Namespace, offered: tuple[str, ...]) -> service.Json:
    """The production load, while the trainer's lane holds all that it asks for."""
    with tempfile.TemporaryDirectory(prefix="rewardloop-trainer-") as directory:
        target = Path(directory) / "trainer.json"
        # Many different texts, so that the lane's cache does not answer.
        asked = ("--lengths", options.mix, "--responses", "1", "--distinct", "20000")
        load = ("--lane", "trainer", "--rpc", "stream", "--callers", str(options.trainer_callers))
        trainer = service.start_load(served, target, *asked, *load, "--seconds", "3600", "--warm-up", "0")
        try:
            run = service.load(served, *offered)
            if trainer.poll() is not None:
                raise service.NotRun("the trainer's load ended early")
            trainer.send_signal(signal.SIGINT)
            behind = service.finish_load(trainer, target)[-1]
        finally:
            service.end(trainer)
    print(f"  trainer's lane meanwhile: {behind['requests_per_s']:.1f} requests/s", flush=True)
    return run


if __name__ == "__main__":
    main()
