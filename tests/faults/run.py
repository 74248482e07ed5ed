"""Injects every fault and prints the table of what became of it.

python tests/faults/run.py             all
python tests/faults/run.py redis kill  those with one of these words in their names
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main(words: list[str]) -> int:
    sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest does
    from _pytest.outcomes import Skipped
    from faults.catalogue import ALL, ELSEWHERE
    from faults.table import observe
    from faults.world import world

    failures = 0
    print("| injected | what callers saw | lost | counted twice | wrong version | took |")
    print("| --- | --- | --- | --- | --- | --- |")
    chosen = [fault for fault in ALL if not words or any(word in fault.name for word in words)]
    with tempfile.TemporaryDirectory() as directory, world(Path(directory)) as running:
        for fault in chosen:
            try:
                row = observe(running, fault)
            except Skipped as reason:
                print(f"| {fault.name} | not run: {reason} | | | | |", flush=True)
                continue
            print(row, *row.unexpected, flush=True)
            failures += not row.is_well
    for name, saw, test in ELSEWHERE:
        if words and not any(word in name for word in words):
            continue
        started = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-x", test]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True)
        failures += done.returncode != 0
        counts = "| 0 | 0 | 0 |" if done.returncode == 0 else "| failed | | |"
        print(f"| {name} (`{test}`) | {saw} {counts} {time.monotonic() - started:.0f} s |", flush=True)
        if done.returncode:
            print(done.stdout[-3000:], file=sys.stderr)
    return failures


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
