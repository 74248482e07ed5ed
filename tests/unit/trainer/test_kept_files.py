"""What rounds leave behind is bounded."""

from __future__ import annotations

from pathlib import Path

from rewardloop_trainer.rounds.kept_files import KEPT, bound_files


def test_the_newest_rounds_stay_and_what_only_training_needs_goes(tmp_path: Path) -> None:
    for folder in ("rounds", *KEPT):
        for number in range(1, 61):
            (tmp_path / folder / f"policy-{number}").mkdir(parents=True)
    (tmp_path / "rounds" / "reward-3").mkdir()
    (tmp_path / "failed" / "policy-notes").mkdir()
    bound_files(tmp_path, "policy", 58)
    left = {folder: {path.name for path in (tmp_path / folder).iterdir()} for folder in ("rounds", *KEPT)}
    assert left["rounds"] == {"policy-59", "policy-60", "reward-3"}
    assert left["refused"] == {f"policy-{number}" for number in range(56, 61)}
    assert left["failed"] == {f"policy-{number}" for number in range(56, 61)} | {"policy-notes"}
    assert left["reports"] == {f"policy-{number}" for number in range(11, 61)}


def test_without_files_there_is_nothing_to_do(tmp_path: Path) -> None:
    bound_files(tmp_path, "reward", 1)
    assert list(tmp_path.iterdir()) == []
