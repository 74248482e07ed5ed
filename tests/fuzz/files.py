"""Damaged files for what reads files: typed errors and nothing else, no death, no hang, nothing half-loaded.

    python tests/fuzz/files.py --kind import --cases 10000
    python tests/fuzz/files.py --kind model --cases 10000

Cases run in child processes, one after the other, so that a death in native code is one case's and is counted. Each
follows from --seed and its number: --first N --cases 1 runs one again. Exit status 1: there were faults.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

_CASES_A_CHILD = 500
_CHECK_EVERY = 50
_SILENCE_S = 60.0  # after which a case is taken to hang; generous, for a busy machine
_MEMORY_BYTES = 6 * 2**30
_SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("import", "model"), required=True)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", default="rewardloop")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return run_here(options.kind, options.seed, range(options.first, options.first + options.cases))
    return run_in_children(options.kind, options.seed, range(options.first, options.first + options.cases))


def run_here(kind: str, seed: str, numbers: range) -> int:
    """Run cases in this process; a line on standard output before each and after it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A damaged shape asks for any amount of memory: it shall be refused, not taken from the machine.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an outcome
    with tempfile.TemporaryDirectory(prefix="rewardloop-fuzz-") as name:
        work = Path(name)
        if kind == "import":
            from import_cases import ImportCases

            cases = ImportCases(work)
        else:
            from model_cases import ModelCases

            cases = ModelCases(work)  # type: ignore[assignment]  # the same two methods
        for number in numbers:
            out.write(f"{number} starts\n")
            try:
                outcome = cases.run(random.Random(f"{seed} {kind} {number}"))
                if number % _CHECK_EVERY == 0:
                    cases.check()
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                outcome = f"fault: {type(error).__name__} in {where}: {ascii(str(error))[1:120]}"
                traceback.print_exc()
            out.write(f"{number} {outcome}\n")
    return 0


def run_in_children(kind: str, seed: str, numbers: range) -> int:
    """Run every case, in a new child after each death; print the table. Returns 1 when there were faults."""
    started = time.monotonic()
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    left = numbers
    while left:
        batch = left[:_CASES_A_CHILD]
        ended = _Child(kind, seed, batch).run(outcomes, faults)
        left = left[ended:]
    width = max(len(outcome) for outcome in outcomes)
    for outcome, count in sorted(outcomes.items(), key=lambda item: -item[1]):
        print(f"{outcome:<{width}}  {count:>6}")
    print(
        f"{kind}: {sum(outcomes.values())} cases, {len(faults)} faults, {time.monotonic() - started:.0f} s, seed {seed}"
    )
    for fault in faults[:_SHOWN]:
        print(fault)
    return 1 if faults else 0


class _Child:
    """One process and the cases that it runs."""

    def __init__(self, kind: str, seed: str, numbers: range) -> None:
        self._numbers = numbers
        command = [sys.executable, __file__, "--child", "--kind", kind, "--seed", seed]
        command += ["--first", str(numbers.start), "--cases", str(len(numbers))]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object's only use, `run`
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors)

    def run(self, outcomes: Counter[str], faults: list[str]) -> int:
        """Add what comes of the cases; returns how many have an outcome: a case that kills the process has one."""
        done, running, buffered = 0, None, b""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        hung = False
        while True:
            ready, _, _ = select.select([descriptor], [], [], _SILENCE_S)
            if not ready:
                hung = True
                self._process.kill()
                break
            data = os.read(descriptor, 65536)
            if not data:
                break
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                number, _, outcome = line.decode().partition(" ")
                if outcome == "starts":
                    running = int(number)
                    continue
                running = None
                done += 1
                outcomes["fault" if outcome.startswith("fault") else outcome] += 1
                if outcome.startswith("fault"):
                    faults.append(f"case {number}: {outcome}")
        code = self._process.wait()
        with contextlib.closing(self._errors):
            if running is None and done < len(self._numbers):
                self._errors.seek(0)
                raise SystemExit(
                    f"the child ended with {code} outside of a case:\n{self._errors.read()[-3000:].decode()}"
                )
            if running is not None:
                what = "hang" if hung else f"death by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
                outcomes[what] += 1
                faults.append(f"case {running}: {what}")
                done += 1
        return done


if __name__ == "__main__":
    raise SystemExit(main())
