"""The trainer's state file survives what a kill leaves behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rewardloop_trainer.rounds.trainer_state import CorruptState, ModelState, RoundState, StateFile, TrainerState

ROUND = RoundState(
    number=3,
    phase="exported",
    after_stream_id="5-0",
    until_stream_id="9-1",
    signals=70,
    new_signals=30,
    seed=11,
    parent="2",
    metrics={"heldout_accuracy": 0.75},
)


def test_round_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    state = TrainerState().with_model("reward", ModelState("5-0", 2, 123.5, ROUND))
    StateFile(tmp_path).write(state)
    assert StateFile(tmp_path).read() == state


def test_first_start_has_no_file_and_a_new_identity(tmp_path: Path) -> None:
    first, second = StateFile(tmp_path).read(), StateFile(tmp_path).read()
    assert first.of("reward") == ModelState()
    assert first.trainer_id != second.trainer_id


def test_write_cut_short_leaves_the_old_state(tmp_path: Path) -> None:
    state = TrainerState().with_model("policy", ModelState("5-0", 2, 123.5, None))
    StateFile(tmp_path).write(state)
    (tmp_path / "state.writing").write_text('{"format_version": 1, "trainer')
    assert StateFile(tmp_path).read() == state


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 99}', '{"format_version": 1, "trainer_id": "a"}'])
def test_unreadable_state_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    file = StateFile(tmp_path)
    file.path.write_text(text)
    with pytest.raises(CorruptState):
        file.read()
    assert file.path.read_text() == text


def test_unknown_phase_is_refused(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.write(TrainerState().with_model("reward", ModelState(round=ROUND)))
    file.path.write_text(file.path.read_text().replace('"exported"', '"celebrated"'))
    with pytest.raises(CorruptState, match="celebrated"):
        file.read()


def test_finished_round_moves_what_is_learned() -> None:
    assert ModelState("5-0", 2, 0.0, ROUND).finished(50.0) == ModelState("9-1", 3, 50.0, None)


def test_round_keys_differ_between_trainers_models_and_rounds() -> None:
    one, other = TrainerState(), TrainerState()
    keys = {one.round_key("reward", 1), one.round_key("reward", 2), one.round_key("policy", 1)}
    assert len(keys | {other.round_key("reward", 1)}) == 4
    assert one.round_key("reward", 1) == replace(one, models={"reward": ModelState()}).round_key("reward", 1)
