"""A few hundred damaged files, as `tests/fuzz/files.py` makes ten thousand of: no fault among them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

_SCRIPT = Path(__file__).parents[1] / "fuzz" / "files.py"


@pytest.mark.parametrize(("kind", "cases"), [("import", 300), ("model", 60)])
def test_damaged_files_are_refused_or_read_and_nothing_else(kind: str, cases: int) -> None:
    command = [sys.executable, str(_SCRIPT), "--kind", kind, "--cases", str(cases), "--seed", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kind}: {cases} cases, 0 faults" in done.stdout
