"""Runs the tests marked ``learning`` as other processors would, with other threads and with other seeds.

    python tests/learning_matrix.py
    python tests/learning_matrix.py --seeds 10 tests/integration/test_policy_lora.py

Every pair of instruction set, oneDNN instruction set and number of threads occurs in a cell at seed 0; further seeds
run on what the processor has. Exits with 1 if a test fails in any cell.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from support.learning_runs import SEED

TESTS = Path(__file__).resolve().parent
MARK = "pytest.mark.learning"
UNSET = "unset"
SETTINGS = ((UNSET, UNSET, 1), (UNSET, "SSE41", 2), ("avx2", "SSE41", 1), ("avx2", UNSET, 2))
SETTINGS += (("default", UNSET, 1), ("default", "SSE41", 2))
SEED_STEP = 1_000  # tests number their own seeds from 0


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the tests. ``aten`` and ``onednn``: the newest instructions that torch and oneDNN may use."""

    aten: str
    onednn: str
    threads: int
    seed: int

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the cell's variables in place of its own."""
        chosen = {
            "ATEN_CPU_CAPABILITY": self.aten,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "OMP_NUM_THREADS": str(self.threads),
            SEED: str(self.seed),
        }
        kept = {name: value for name, value in os.environ.items() if name not in chosen}
        # Two threads that wait for each other by spinning take the cores from the processes beside them.
        waiting = {"OMP_WAIT_POLICY": "PASSIVE"}
        return kept | waiting | {name: value for name, value in chosen.items() if value != UNSET}

    def __str__(self) -> str:
        return f"{self.aten:<8} {self.onednn:<6} {self.threads:>7} {self.seed:>6}"


@dataclass(frozen=True, slots=True)
class Result:
    """``failed``: the tests that failed; ``problem``: what pytest said if no test ran, else empty."""

    tests: int
    failed: tuple[str, ...]
    seconds: float
    problem: str

    @property
    def is_passed(self) -> bool:
        return not self.failed and not self.problem

    def __str__(self) -> str:
        return f"{self.tests:>5} {len(self.failed):>6} {self.seconds:>7.0f}  {'passed' if self.is_passed else 'FAILED'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds to run beside 0 (default: 5)")
    parser.add_argument("paths", nargs="*", help="tests to choose from (default: all)")
    options = parser.parse_args()
    paths = options.paths or [str(path) for path in TESTS.rglob("test_*.py") if MARK in path.read_text()]
    cells = [Cell(*setting, seed=0) for setting in SETTINGS]
    cells += [Cell(UNSET, UNSET, 1, SEED_STEP * (1 + i)) for i in range(options.seeds)]
    results: dict[Cell, Result] = {}
    for number, cell in enumerate(cells, 1):
        result = results[cell] = run(cell, paths)
        print(f"[{number}/{len(cells)}] {cell} {result}", flush=True)
        for line in (*result.failed, *filter(None, [result.problem])):
            print(f"    {line}", flush=True)
    print("\naten     onednn threads   seed tests failed seconds")
    for cell, result in results.items():
        print(cell, result)
    return int(not all(result.is_passed for result in results.values()))


def run(cell: Cell, paths: list[str]) -> Result:
    """Run the tests of one cell in processes that together have as many threads as there are cores."""
    workers = max(1, (os.cpu_count() or 1) // cell.threads)
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        argv = [sys.executable, "-m", "pytest", "-q", "-m", "learning", "-n", str(workers), "--dist", "loadfile"]
        argv += ["-p", "no:cacheprovider", f"--junitxml={report}", *paths]
        began = time.monotonic()
        done = subprocess.run(argv, env=cell.environment, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    failed = tuple(
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    )
    is_explained = bool(failed) or (done.returncode == 0 and cases)
    problem = "" if is_explained else "\n".join((done.stdout + done.stderr).splitlines()[-10:])
    return Result(sum(case.find("skipped") is None for case in cases), failed, seconds, problem)


if __name__ == "__main__":
    sys.exit(main())
