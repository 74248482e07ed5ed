"""tests/bench/gpu.py, which is made for a GPU, runs on a CPU too, and says of each case what became of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
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


def serve_fakes(connection: Connection, broken: Path | None = None) -> None:
    """Cases without a model. The device works unless there is a file ``broken``, which the case of that name makes."""
    from gpu_watch import Skipped, answer

    def run(name: str) -> Iterator[dict[str, Any]]:
        match name:
            case "warm":
                yield {}
            case "good":
                yield {"figure": 1}
                yield {"other": 2}
            case "absent":
                raise Skipped("not here")
            case "raises":
                yield {"figure": 1}
                raise RuntimeError("CUDA error 700")
            case "broken":
                assert broken is not None
                broken.touch()
                raise RuntimeError("CUDA error 700")
            case "dies":
                os._exit(3)
            case "hangs":
                yield {"figure": 1}
                time.sleep(600)
            case "works" if broken is None or not broken.exists():
                yield {}
            case "works":
                raise RuntimeError("CUDA error 700")

    answer(connection, run)


def lines_of(gpu: Any, names: list[str], case_s: float = 60.0, **options: Any) -> tuple[bool, list[dict[str, Any]]]:
    """What is said of the cases, without the seconds that they took, and whether all is good."""
    said: list[dict[str, Any]] = []
    seconds = options.pop("seconds", 600.0)

    def start() -> Any:
        worker = gpu.Worker(serve_fakes, *options.values())
        assert worker.run("warm", 300.0).outcome == "done"  # a busy machine starts a process slowly
        return worker

    is_good = gpu.run_cases(start, names, time.monotonic() + seconds, case_s, said.append)
    for line in said:
        line.pop("seconds", None)
    return is_good, said


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_case_runs_on_a_cpu_on_graphs_that_are_prepared_or_says_why_not(tmp_path: Path) -> None:
    graphs, out = tmp_path / "graphs", tmp_path / "lines.jsonl"
    script = [sys.executable, str(BENCH / "gpu.py")]
    subprocess.run([*script, "--tiny", "--prepare", str(graphs)], check=True, timeout=400)
    assert sum(path.stat().st_size for path in graphs.iterdir()) < 4 * 2**20
    command = [*script, "--device", "cpu", "--from", str(graphs), "--seconds", "400", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=450)
    lines = {line["case"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert done.returncode == 0, (lines, done.stderr[-2000:])
    named = "machine ceilings parity throughput attention trees memory callers several_gpus swap training generate"
    assert list(lines) == [*named.split(), "out_of_memory"]
    assert [name for name, line in lines.items() if not line.get("ok")] == ["several_gpus", "out_of_memory"]
    assert lines["swap"]["swaps"] >= 1
    for precision in ("float16", "bfloat16"):
        for way in ("plain", "bound", "torch"):
            figures = lines["throughput"][f"tiny {precision}, 256 tokens, {way}"]
            assert set(figures) == {"tokens_per_s", "of_measured", "of_stated"}
            assert all(figure > 0 for figure in figures.values())
    assert lines["training"]["float32_dpo_steps_per_s"] > 0
    assert lines["generate"]["bfloat16_tokens_per_s"] > 0


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_graph_that_is_not_prepared_is_not_traced_within_the_time(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "gpu.py"), "--device", "cpu", "--from", str(tmp_path), "--only", "machine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    line = json.loads(done.stdout)
    assert done.returncode == 1
    assert "llama-tiny.onnx is not there" in line["error"]


def test_the_names_of_the_script_are_those_of_its_cases(gpu: Any) -> None:
    import gpu_cases

    assert [*gpu.CASES, gpu.WORKS] == list(gpu_cases.CASES)


def test_a_case_that_hangs_is_cut_off_with_its_figures_and_the_next_one_runs(gpu: Any) -> None:
    is_good, said = lines_of(gpu, ["good", "hangs", "good"], case_s=3.0)
    assert not is_good
    assert said == [
        {"case": "good", "ok": True, "figure": 1, "other": 2},
        {"case": "hangs", "ok": False, "error": "cut off after 3 s", "figure": 1},
        {"case": "good", "ok": True, "figure": 1, "other": 2},
    ]


def test_a_run_ends_in_its_time_and_names_what_is_left(gpu: Any) -> None:
    is_good, said = lines_of(gpu, ["hangs", "good", "absent"], seconds=3.0)
    assert not is_good
    assert said == [
        {"case": "hangs", "ok": False, "error": "cut off after 3 s", "figure": 1},
        {"case": "good", "skipped": "no time is left"},
        {"case": "absent", "skipped": "no time is left"},
    ]


def test_after_a_case_that_broke_the_device_the_others_are_skipped_by_name(gpu: Any, tmp_path: Path) -> None:
    is_good, said = lines_of(gpu, ["raises", "dies", "absent", "broken", "good"], broken=tmp_path / "broken")
    assert not is_good
    assert said == [
        {"case": "raises", "ok": False, "error": "RuntimeError: CUDA error 700", "figure": 1},
        {"case": "dies", "ok": False, "error": "its process ended with status 3"},
        {"case": "absent", "skipped": "not here"},
        {"case": "broken", "ok": False, "error": "RuntimeError: CUDA error 700"},
        {"case": "good", "skipped": "the device runs nothing since broken"},
    ]


def test_a_run_without_a_case_that_ran_is_not_good(gpu: Any) -> None:
    assert lines_of(gpu, ["absent"]) == (False, [{"case": "absent", "skipped": "not here"}])
    assert lines_of(gpu, ["good"])[0]


def test_memory_that_grows_with_the_shapes_fails_the_case(gpu: Any) -> None:
    from gpu_cases import check_growth

    check_growth({"largest": 1_000.0, "many": 1_100.0, "many_again": 1_160.0})
    with pytest.raises(AssertionError, match=r"more than 164 MB: \{'many_again': 170"):
        check_growth({"largest": 1_000.0, "many": 1_100.0, "many_again": 1_170.0})
