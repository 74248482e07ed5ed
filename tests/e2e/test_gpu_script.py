"""tests/bench/gpu.py, which is made for a GPU, runs on a CPU too, and says of each case what became of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    return gpu


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_case_runs_on_a_cpu_or_says_why_not(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "gpu.py"), "--device", "cpu", "--out", str(tmp_path / "lines.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert done.returncode == 0, (lines, done.stderr[-2000:])
    named = "machine ceilings parity attention trees callers swap throughput memory training out_of_memory"
    assert [line["case"] for line in lines] == named.split()
    assert [line["case"] for line in lines if not line.get("ok")] == ["out_of_memory"]
    assert {line["case"]: line for line in lines}["swap"]["swaps"] >= 1


def test_after_a_case_that_broke_the_device_the_others_are_skipped_by_name(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("CUDA error 700")

    monkeypatch.setattr(gpu, "CASES", {"good": lambda _: {"figure": 1}, "bad": broken, "left": lambda _: {}})
    works = iter((True, False))
    monkeypatch.setattr(gpu, "still_works", lambda _: next(works))
    said: list[dict[str, Any]] = []
    assert not gpu.run_cases(None, ["bad", "good", "bad", "left"], float("inf"), said.append)
    assert [line.get("ok") for line in said] == [False, True, False, None]
    assert said[2]["error"] == "RuntimeError: CUDA error 700"
    assert said[3]["skipped"] == "the device runs nothing since bad"


def test_cases_for_which_no_time_is_left_are_named_and_a_run_of_none_fails(gpu: Any) -> None:
    said: list[dict[str, Any]] = []
    assert not gpu.run_cases(None, ["machine", "parity"], 0.0, said.append)
    assert [(line["case"], line["skipped"]) for line in said] == [
        ("machine", "no time is left"),
        ("parity", "no time is left"),
    ]
