"""The demo tells of the trainer's rounds that led to no version, and of the judge that the trainer keeps."""

import json
import math
import shutil
from pathlib import Path

from rewardloop_demo.record import FruitlessRound, PolicyJudge
from rewardloop_demo.trainer_notes import TrainerNotes


def _refuse(work_dir: Path, name: str, *reasons: str) -> Path:
    kept = work_dir / "refused" / name
    kept.mkdir(parents=True)
    (kept / "reasons.json").write_text(json.dumps({"reasons": reasons, "metrics": {}}))
    return kept


def test_a_trainer_that_has_refused_nothing_has_no_fruitless_rounds(tmp_path: Path) -> None:
    notes = TrainerNotes(tmp_path / "absent")
    assert not notes.look(1.0, 10)
    assert notes.fruitless == []


def test_each_refused_round_is_told_once_and_stays_when_the_trainer_deletes_it(tmp_path: Path) -> None:
    notes = TrainerNotes(tmp_path)
    kept = _refuse(tmp_path, "policy-1", "needs 12 more held-out prompts", "win rate 0.4")
    assert notes.look(60.0, 800)
    assert not notes.look(70.0, 900)
    shutil.rmtree(kept)
    _refuse(tmp_path, "reward-12", "it is no likelier")
    assert notes.look(90.0, 1_000)
    assert notes.fruitless == [
        FruitlessRound("policy", 1, "refused", 60.0, 800, ("needs 12 more held-out prompts", "win rate 0.4")),
        FruitlessRound("reward", 12, "refused", 90.0, 1_000, ("it is no likelier",)),
    ]


def test_a_failed_round_is_told_by_the_first_line_of_its_error(tmp_path: Path) -> None:
    kept = tmp_path / "failed" / "policy-3"
    kept.mkdir(parents=True)
    (kept / "error.txt").write_text("OSError: no room\nRoundState(...)\n")
    notes = TrainerNotes(tmp_path)
    notes.look(5.0, 7)
    assert notes.fruitless == [FruitlessRound("policy", 3, "failed", 5.0, 7, ("OSError: no room",))]


def test_a_trainer_without_a_judge_of_its_own_lets_the_live_model_judge(tmp_path: Path) -> None:
    assert TrainerNotes(tmp_path).judge({"gate_win_rate": 0.6}) == PolicyJudge(is_own=False)


def test_the_own_judge_is_told_with_its_signals_and_its_agreement(tmp_path: Path) -> None:
    kept = tmp_path / "judge" / "kept"
    kept.mkdir(parents=True)
    (kept / "about.json").write_text(json.dumps({"signals": 4_000, "learned": 600}))
    found = TrainerNotes(tmp_path).judge({"gate_judge_accuracy": 0.68, "gate_judge_accuracy_lower": 0.63})
    assert found == PolicyJudge(True, 600, 0.68, 0.63)
    assert math.isnan(TrainerNotes(tmp_path).judge({}).accuracy)
