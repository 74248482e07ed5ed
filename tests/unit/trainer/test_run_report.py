"""The report of a run: readable lines, each step once however often the run was cut off, events and a picture."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from rewardloop_trainer.learning.run_report import RunReport
from rewardloop_trainer.learning.run_rows import StepDone, last_means, read_steps

FIGURES = {"score": 0.412, "reward": 0.3, "kl": 1.234, "tokens": 34.2, "loss": -0.0123, "clipped": 0.012}


def done(step: int, score: float = 0.412) -> StepDone:
    return StepDone(step, 12, {**FIGURES, "score": score}, sampled_tokens=3000, seconds=1.5)


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    """All that the event files say of one figure, in their order; what TensorBoard reads."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
            at += 12 + length + 4
    return found


def test_each_step_is_one_line_that_a_person_can_read(tmp_path: Path) -> None:
    text = io.StringIO()
    report = RunReport(tmp_path, console=Console(file=text, width=60))
    report(done(1))
    report(done(2, score=0.5))
    assert text.getvalue().splitlines() == [
        "step  1/12  score 0.412  reward 0.300  kl 1.23  tokens 34.2  loss -0.0123  clipped 1.2%  tokens/s 2,000",
        "step  2/12  score 0.500  reward 0.300  kl 1.23  tokens 34.2  loss -0.0123  clipped 1.2%  tokens/s 2,000",
    ]


def test_steps_that_are_taken_again_after_a_kill_are_there_once(tmp_path: Path) -> None:
    killed = RunReport(tmp_path)
    for step in range(1, 6):
        killed(done(step, score=1.0))
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 6, "ste')  # cut off in the middle of a line
    resumed = RunReport(tmp_path)
    for step in range(3, 13):
        resumed(done(step, score=2.0))
    expected = [(step, 1.0 if step < 3 else 2.0) for step in range(1, 13)]
    assert [(row.step, row.figures["score"]) for row in read_steps(tmp_path)] == expected
    assert scalars(tmp_path, "score") == expected


def test_another_run_in_the_same_directory_begins_anew(tmp_path: Path) -> None:
    for score in (1.0, 2.0):
        report = RunReport(tmp_path)
        report(done(1, score))
        report.close()
    assert [row.figures["score"] for row in read_steps(tmp_path)] == [2.0]
    assert scalars(tmp_path, "score") == [(1, 2.0)]


def test_the_picture_is_there_every_few_steps_and_at_the_end(tmp_path: Path) -> None:
    report = RunReport(tmp_path, draw_every=2)
    picture = tmp_path / "report.png"
    report(done(1))
    assert not picture.exists()
    report(done(2))
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    for step in range(3, 13):
        report(done(step))
    assert picture.stat().st_size > 10_000


def test_the_gates_figures_belong_to_the_last_step(tmp_path: Path) -> None:
    report = RunReport(tmp_path, draw_every=100)
    report(done(11))
    RunReport(tmp_path).add({"gate_win_rate": 0.75, "gate_win_rate_lower": 0.5, "gate_win_rate_upper": 0.875})
    assert scalars(tmp_path, "gate_win_rate") == [(11, 0.75)]
    assert read_steps(tmp_path)[-1].figures["gate_win_rate"] == 0.75
    assert (tmp_path / "report.png").exists()


def test_a_report_that_someone_damaged_is_not_taken_for_a_cut_off_one(tmp_path: Path) -> None:
    report = RunReport(tmp_path)
    report(done(1))
    report.close()
    path = tmp_path / "steps.jsonl"
    path.write_text("garbage\n" + path.read_text())
    with pytest.raises(ValueError, match="Expecting value"):
        RunReport(tmp_path)(done(2))


def test_a_run_whose_start_was_all_it_learned_has_no_step() -> None:
    assert last_means([]) == {"train_steps": 0.0}
