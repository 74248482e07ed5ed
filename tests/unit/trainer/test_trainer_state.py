"""The trainer's state file survives what a kill leaves behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.identity import IDENTITY, OtherArchive
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
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
    assert ModelState("5-0", 2, 0.0, ROUND).finished(50.0, "refused") == ModelState("9-1", 3, 50.0, None)


def test_a_start_from_the_base_is_remembered_until_another_one(tmp_path: Path) -> None:
    fresh, other = replace(ROUND, is_fresh=True), replace(ROUND, until_stream_id="10-0")
    later = replace(fresh, until_stream_id="11-0", phase="training")
    file = StateFile(tmp_path)
    seen = []
    known = ModelState()
    for now, outcome in ((fresh, "refused"), (other, "promoted"), (later, "given_up")):
        known = replace(known, round=now).finished(50.0, outcome)
        file.write(TrainerState().with_model("reward", known))
        seen.append(StateFile(tmp_path).read().of("reward").fresh_until)
    assert seen == ["9-1", "9-1", "11-0"]


def test_a_start_from_the_base_that_went_live_is_remembered_because_a_person_may_roll_it_back() -> None:
    fresh = replace(ROUND, is_fresh=True, phase="promoted")
    assert replace(ModelState(), round=fresh).finished(50.0, "promoted").fresh_until == "9-1"


def test_a_round_that_had_nothing_to_train_on_is_no_start_from_the_base() -> None:
    nothing = replace(ROUND, is_fresh=True, phase="training")
    assert replace(ModelState(fresh_until="4-0"), round=nothing).finished(50.0, "refused").fresh_until == "4-0"
    assert replace(ModelState(), round=nothing).finished(50.0, "skipped").fresh_until == "9-1"  # it fails there


def test_a_state_of_an_earlier_release_knows_of_no_such_start(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.write(TrainerState().with_model("reward", ModelState(round=ROUND)))
    raw = json.loads(file.path.read_text())
    del raw["models"]["reward"]["fresh_until"], raw["models"]["reward"]["round"]["is_fresh"]
    for earlier in ({}, {"fresh_refused": 70}):
        raw["models"]["reward"] |= earlier
        file.path.write_text(json.dumps(raw))
        known = file.read().of("reward")
        assert (known.fresh_until, known.round) == ("", ROUND)


def test_round_keys_differ_between_trainers_models_and_rounds() -> None:
    one, other = TrainerState(), TrainerState()
    keys = {one.round_key("reward", 1), one.round_key("reward", 2), one.round_key("policy", 1)}
    assert len(keys | {other.round_key("reward", 1)}) == 4
    assert one.round_key("reward", 1) == replace(one, models={"reward": ModelState()}).round_key("reward", 1)


def ledger_of(path: Path, rows: int) -> Ledger:
    """A ledger with rows at 1-0, 2-0 and so on."""
    ledger = Ledger(path)
    ledger.append([Recorded(f"{i}-0", choice(i)) for i in range(1, rows + 1)])
    return ledger


def choice(number: int) -> feedback_pb2.FeedbackEvent:
    event = feedback_pb2.FeedbackEvent(event_id=f"e{number}", responses=["a", "b"])
    event.choice.chosen, event.choice.rejected = 0, 1
    event.arrival_time.FromMilliseconds(number)
    return event


def test_a_state_is_held_to_the_first_archive_that_it_meets(tmp_path: Path) -> None:
    file, own = StateFile(tmp_path / "work"), ledger_of(tmp_path / "own", 3)
    file.hold_to(own)
    state = file.read()
    assert state.archive_place == str(tmp_path / "own")
    file.hold_to(Ledger(tmp_path / "own"))
    assert file.read() == state
    for rows in (0, 3):
        other = ledger_of(tmp_path / f"other-{rows}", rows)
        with pytest.raises(OtherArchive, match=f"belongs to the archive at {tmp_path / 'own'}"):
            file.hold_to(other)
        assert not (tmp_path / f"other-{rows}" / IDENTITY).exists()
    StateFile(tmp_path / "another").hold_to(ledger_of(tmp_path / "other-3", 0))
    with pytest.raises(OtherArchive, match="is not that one"):
        file.hold_to(Ledger(tmp_path / "other-3"))
    assert file.read() == state


def test_a_copy_of_an_archive_is_the_same_one_also_if_it_ends_earlier(tmp_path: Path) -> None:
    file, own = StateFile(tmp_path / "work"), ledger_of(tmp_path / "own", 3)
    file.hold_to(own)
    file.write(file.read().with_model("reward", ModelState("9-0", 1, 1.0, None)))
    shutil.copytree(tmp_path / "own", tmp_path / "copy")
    copy = Ledger(tmp_path / "copy")
    file.hold_to(copy)
    file.keep_within(copy.last_stream_id or "")
    state = file.read()
    assert state.of("reward").learned_through == "3-0"
    assert state.archive_place == str(tmp_path / "copy")


def test_a_state_of_an_earlier_release_takes_an_archive_with_signals_and_no_empty_one(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "work")
    file.write(TrainerState("t", {"reward": ModelState("2-0", 1, 1.0, None)}))
    raw = json.loads(file.path.read_text())
    file.path.write_text(json.dumps({name: raw[name] for name in ("format_version", "trainer_id", "models")}))
    with pytest.raises(OtherArchive, match=r"belongs to another archive, and .* is empty"):
        file.hold_to(Ledger(tmp_path / "mistyped"))
    file.hold_to(ledger_of(tmp_path / "own", 3))
    assert file.read().of("reward").learned_through == "2-0"


def test_an_archive_whose_id_cannot_be_read_is_refused(tmp_path: Path) -> None:
    own = ledger_of(tmp_path / "own", 1)
    (tmp_path / "own" / IDENTITY).write_text("{}")
    with pytest.raises(OtherArchive, match="does not say which archive this is"):
        StateFile(tmp_path / "work").hold_to(own)
