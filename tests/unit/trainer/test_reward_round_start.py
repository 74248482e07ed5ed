"""A reward round notes that it starts from the base before it trains, so that a refused one is not repeated."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewardloop.formats.manifest import DataRange, Manifest
from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Turn
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds import reward_round
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.model_round import Refused
from rewardloop_trainer.rounds.reward_round import RewardRound
from rewardloop_trainer.rounds.trainer_state import RoundState, StateFile
from rewardloop_trainer.settings import TrainSettings


class Unread(RewardRound):
    """A round whose models and records are not loaded."""

    def _start(self) -> Any:
        return None

    _records: Any = Manifest  # never read for a start from the base

    def _records_from_base(self, encoder: Any) -> Any:
        return ()


@pytest.fixture
def current(tmp_path: Path) -> CurrentRound:
    return CurrentRound("reward", StateFile(tmp_path / "work"), TrainerMetrics())


def begun(tmp_path: Path, current: CurrentRound, number: int, signals: int) -> Unread:
    """A round on version 2, which was trained from version 1 on 100 signals."""
    store = ModelStore(tmp_path / "store")
    if not store.versions("reward"):
        trained = Manifest("reward", parent="1", data=DataRange("1-0", "2-0", 100), notes={"fresh_signals": "100"})
        for manifest in (Manifest("reward"), trained):
            store.publish(manifest, lambda directory: None)
    current.reach(RoundState(number, "training", "", f"{signals}-0", signals, 10, seed=1, parent="2"))
    ledger = Ledger(tmp_path / "ledger")
    event = feedback_pb2.FeedbackEvent(responses=["a", "b"], choice=feedback_pb2.Choice(chosen=0, rejected=1))
    ledger.append([Recorded(f"{i}-0", event) for i in range(ledger.row_count + 1, signals + 1)])
    return going_on(tmp_path, current, ledger)


def going_on(tmp_path: Path, current: CurrentRound, ledger: Ledger) -> Unread:
    """The round under way, in a process that has just started."""
    settings = TrainSettings.model_validate({"store": f"{tmp_path}/store", "work_dir": tmp_path / "work"})
    none: Any = None
    store = ModelStore(tmp_path / "store")
    return Unread(settings, store, ledger, none, none, TrainerMetrics(), threading.Event(), current)


def end(current: CurrentRound, directory: Path) -> None:
    """End the round refused after it trained, as the loop does."""
    current.reach(replace(current.state, phase="exported"))
    file = StateFile(directory / "work")
    file.write(file.read().with_model("reward", file.read().of("reward").finished(1.0, "refused")))


@pytest.fixture
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    class Started:
        encoder = None

    monkeypatch.setattr(reward_round, "start_from", lambda *arguments: Started())
    monkeypatch.setattr(reward_round, "is_delta", lambda *arguments: False)


@pytest.mark.usefixtures("_no_models")
def test_a_refused_start_from_the_base_waits_until_signals_have_grown_again(
    tmp_path: Path, current: CurrentRound
) -> None:
    first = begun(tmp_path, current, 1, 200)
    first._start_of_training()
    assert first._chosen_start.version == "1"
    assert current.state.is_fresh
    end(current, tmp_path)
    assert not begun(tmp_path, current, 2, 299)._chosen_start.is_fresh
    again = begun(tmp_path, current, 2, 300)
    assert again._chosen_start.is_fresh
    current.reach(replace(current.state, is_fresh=False))
    again._start_of_training()
    assert current.state.is_fresh


@pytest.mark.usefixtures("_no_models")
def test_a_round_that_has_begun_to_train_keeps_its_start_though_the_ledger_loses_signals(
    tmp_path: Path, current: CurrentRound
) -> None:
    first = begun(tmp_path, current, 1, 200)
    first._start_of_training()
    kept = first._chosen_start
    emptied = Ledger(tmp_path / "emptied")
    assert going_on(tmp_path, current, emptied)._chosen_start == kept
    current.reach(replace(current.state, is_fresh=False))
    assert going_on(tmp_path, current, emptied)._chosen_start == replace(kept, version="2", is_fresh=False)


def test_a_round_whose_people_are_not_heard_says_so(tmp_path: Path, current: CurrentRound) -> None:
    muted = [Pair((Turn("user", "q"),), "yes", "no", weight=0.0, annotator="a")]
    with pytest.raises(Refused, match="of people who are not heard"):
        begun(tmp_path, current, 1, 200)._weighed_by_source(muted, {})
