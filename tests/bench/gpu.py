"""What a GPU does with our graphs: one run of at most nine minutes, one JSON line for each case.

    python tests/bench/gpu.py [--device cuda|cpu] [--tiny] [--only CASE ...] [--seconds 525] [--out FILE]

The cases run in another process. One that hangs is cut off, and its line has the figures that it gave until then. After
a case that failed, the next is tried if the device still works in a new process; else every case that is left is
skipped by its name, as are those for which no time is left. The exit status is 1 if a case failed or none ran. On a
CPU, where `--tiny` is the default, the same cases run on small models, so that the script itself is tested without a
GPU.

The time includes all that a case needs. `--prepare DIR` traces the graphs beforehand, on any machine; they take a few
MB, because weights are random and made anew. `--from DIR` then takes them, so that nothing is traced within the time.
`gpu_pack.py` puts them together with what else a machine without a network lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from gpu_watch import Json, Worker

# In the order in which they are most worth their time.
CASES = (
    "machine",
    "ceilings",
    "parity",
    "throughput",
    "attention",
    "trees",
    "memory",
    "callers",
    "several_gpus",
    "swap",
    "training",
    "generate",
    "out_of_memory",
)
WORKS = "works"
_WORKS_S = 90.0  # torch is imported in it


@dataclass(frozen=True, slots=True)
class Options:
    """What the process of the cases is told.

    Attributes:
        device: As `--device` of the server.
        is_tiny: Small models; None: on a CPU.
        work: Where models are kept.
        graphs: Where `--prepare` has put the graphs; None: they are traced when they are needed.
    """

    device: str
    is_tiny: bool | None
    work: Path
    graphs: Path | None


def serve(connection: Connection, options: Options) -> None:
    """Run the cases that are asked for. It imports torch and ONNX Runtime, which the process that watches does not."""
    os.environ.setdefault("ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO", "1")  # each Attention says which kernel it took
    import gpu_cases

    gpu_cases.serve(connection, options.device, options.is_tiny, options.work, options.graphs)


def run_cases(
    start: Callable[[], Worker], names: Sequence[str], until: float, case_s: float, say: Callable[[Json], None]
) -> bool:
    """Run the cases in order, and say what came of each.

    Args:
        start: Starts a process that knows the cases and `WORKS`, which runs a little on the device.
        names: The cases.
        until: When all must have ended, by `time.monotonic`.
        case_s: Most seconds of a case.
        say: Called with each case's line.

    Returns:
        Whether no case failed and at least one ran.
    """
    failed, ran, why = False, False, ""
    worker: Worker | None = None
    for name in names:
        started = time.monotonic()
        if not why and started >= until:
            why = "no time is left"
        if why:
            say({"case": name, "skipped": why})
            continue
        worker = worker or start()
        ended = worker.run(name, min(case_s, until - started))
        seconds = round(time.monotonic() - started, 2)
        if ended.outcome == "done":
            ran = True
            say({"case": name, "ok": True, "seconds": seconds, **ended.figures})
        elif ended.outcome == "skipped":
            say({"case": name, "skipped": ended.why, **ended.figures})
        else:
            failed = True
            say({"case": name, "ok": False, "error": ended.why, "seconds": seconds, **ended.figures})
            worker.end()
            worker, left = None, until - time.monotonic()
            if left > 0:
                worker = start()
                if worker.run(WORKS, min(_WORKS_S, left)).outcome != "done":
                    why = f"the device runs nothing since {name}"
    if worker is not None:
        worker.end()
    return ran and not failed


def main() -> int:
    """Run the script. Returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "tensorrt"), default="auto")
    parser.add_argument("--tiny", action=argparse.BooleanOptionalAction, help="small models (default: on a CPU)")
    parser.add_argument("--only", action="append", choices=CASES, default=[], metavar="CASE")
    parser.add_argument("--seconds", type=float, default=525.0, help="most seconds of the run (default 525)")
    parser.add_argument("--case-seconds", type=float, default=200.0, help="most seconds of a case (default 200)")
    parser.add_argument("--work", type=Path, help="where models are kept (default: a temporary directory)")
    parser.add_argument("--out", type=Path, help="write the lines into this file, too")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="trace the graphs into DIR, and run nothing")
    parser.add_argument("--from", type=Path, metavar="DIR", dest="graphs", help="take the graphs that are prepared")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    if options.prepare is not None:
        import gpu_world

        gpu_world.prepare(gpu_world.TINY if options.tiny else gpu_world.REAL, options.prepare)
        return 0
    if options.graphs is not None and not options.graphs.is_dir():
        parser.error(f"{options.graphs} is not a directory")
    lines: list[str] = []

    def say(line: Json) -> None:
        lines.append(json.dumps(line))
        print(lines[-1], flush=True)
        if options.out is not None:
            options.out.write_text("\n".join(lines) + "\n")

    with tempfile.TemporaryDirectory(prefix="rewardloop-gpu-", ignore_cleanup_errors=True) as made:
        told = Options(options.device, options.tiny, options.work or Path(made), options.graphs)
        names = [name for name in CASES if not options.only or name in options.only]
        is_good = run_cases(lambda: Worker(serve, told), names, until, options.case_seconds, say)
    return 0 if is_good else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # exiting as usual would wait for a process that hangs in a driver
