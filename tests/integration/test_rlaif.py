"""A policy that learns from a judge's labels alone, in the demo's world, is liked better than the starter.

The hidden taste judges, in a process of its own: it may not be read where training already runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.learning_runs import learning_seed

BENCH = Path(__file__).parents[1] / "bench/rlaif.py"


@pytest.mark.long
@pytest.mark.learning
@pytest.mark.timeout(3_000)
def test_policy_learned_from_judge_labels_alone_beats_the_starter(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "--work", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    command += ["--control", "--seeds", "2", "--first-seed", str(learning_seed())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2_900)
    assert done.returncode == 0, done.stderr[-3_000:]
    print(done.stdout)
    rows = json.loads((tmp_path / "rows.json").read_text())
    learned = [row for row in rows if row["labels"] == "judge"]
    by_lot = [row for row in rows if row["labels"] == "by lot"]
    assert all(row["lower"] > 0.5 for row in learned), done.stdout
    assert all(row["win_rate"] > other["win_rate"] for row, other in zip(learned, by_lot, strict=True)), done.stdout
