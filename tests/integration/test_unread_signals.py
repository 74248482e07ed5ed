"""Signals that a model's chat template refuses: they are counted apart, start no round, and are shown with a reason."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from redis import Redis
from support.chat_bases import chat_base
from support.signals import choice

from rewardloop.formats.store import TOKENIZER, Manifest, ModelStore
from rewardloop.v1 import common_pb2
from rewardloop_cli.metrics_page import MetricsPage
from rewardloop_cli.status import _trainer_figures
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.archive.redis_link import connect_redis
from rewardloop_trainer.data.base_layout import decoder_layout
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.bulletin.board import Board
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.loop import Learner, Loop, LoopSettings
from rewardloop_trainer.rounds.trainer_state import StateFile
from rewardloop_trainer.rounds.unread_signals import UnreadSignals
from rewardloop_trainer.vocabulary import ModelName, Outcome

_REASON = "the chat template refuses the conversation: no system turns"


def _publish(store: ModelStore, model: str, kind: str) -> None:
    base = chat_base(kind)
    use = "read" if model == "reward" else "write"
    text_format = decoder_layout(base.hugging_face(), use).text_format
    manifest = Manifest(model, text_format=text_format.to_json(), max_length=128)
    store.publish(manifest, lambda directory: base.tokenizer.save(str(directory / TOKENIZER)))


def _arrive(ledger: Ledger, first: int, count: int, *, system: bool) -> None:
    events = []
    for number in range(first, first + count):
        event = choice(number)
        if system:
            roles = [("system", "Be brief."), ("user", f"question {number}")]
            messages = [common_pb2.Message(role=role, content=content) for role, content in roles]
            event.prompt.conversation.CopyFrom(common_pb2.Conversation(messages=messages))
        events.append(Recorded(f"{1000 + number}-0", event))
    ledger.append(events)


@pytest.mark.parametrize("model", ["reward", "policy"])
def test_refused_conversations_are_counted_apart_and_start_no_round(
    tmp_path: Path, redis_url: str, model: ModelName
) -> None:
    store, ledger, metrics = ModelStore(tmp_path / "models"), Ledger(tmp_path / "ledger"), TrainerMetrics()
    _publish(store, model, "no_system")
    rounds: list[int] = []

    def run(current: CurrentRound) -> Outcome:
        rounds.append(current.state.new_signals)
        return "promoted"

    unread = UnreadSignals(model, store, connect_redis(redis_url), ledger, metrics)
    learner = Learner(model, 10, 600.0, run, unread.count)
    state = StateFile(tmp_path)
    stop, board = threading.Event(), Board()
    loop = Loop([learner], ledger, state, metrics, stop, LoopSettings(tmp_path), clock=lambda: 1.0, board=board)
    _arrive(ledger, 0, 9, system=False)
    _arrive(ledger, 9, 8, system=True)
    assert not loop.due(learner)
    page = MetricsPage(_text_of(metrics))
    assert page.total("rewardloop_trainer_new_signals", model=model) == 9
    assert page.total("rewardloop_trainer_unread_signals", model=model, reason=_REASON) == 8
    (shown,) = board.trainer().models
    assert (shown.model, shown.new_signals, shown.least_signals, shown.unread_signals) == (model, 9, 10, 8)
    rows = dict(_trainer_figures(page))
    assert rows[f"left out, {model}"] == f"8 new signals: {_REASON}"
    _arrive(ledger, 17, 1, system=False)
    assert loop.due(learner)
    loop.run(max_rounds=1)
    assert rounds == [10]
    assert not loop.due(learner)
    assert MetricsPage(_text_of(metrics)).total("rewardloop_trainer_unread_signals", model=model) == 0


def test_a_version_with_another_layout_is_asked_anew(tmp_path: Path, redis_url: str) -> None:
    store, ledger, metrics = ModelStore(tmp_path / "models"), Ledger(tmp_path / "ledger"), TrainerMetrics()
    unread = UnreadSignals("reward", store, connect_redis(redis_url), ledger, metrics)
    _arrive(ledger, 0, 3, system=True)
    assert unread.count(None) == 0  # no version reads anything yet
    _publish(store, "reward", "no_system")
    assert unread.count(None) == 3
    _publish(store, "reward", "chatml")
    assert unread.count(None) == 0


def test_an_absent_redis_leaves_the_last_count(tmp_path: Path, redis_url: str) -> None:
    store, ledger, metrics = ModelStore(tmp_path / "models"), Ledger(tmp_path / "ledger"), TrainerMetrics()
    _publish(store, "reward", "no_system")
    _arrive(ledger, 0, 3, system=True)
    client = connect_redis(redis_url)
    unread = UnreadSignals("reward", store, client, ledger, metrics)
    assert unread.count(None) == 3
    unread._redis = Redis("127.0.0.1", 1)
    _arrive(ledger, 3, 2, system=True)
    assert unread.count(None) == 5


def test_reasons_beyond_the_bound_are_counted_together() -> None:
    metrics = TrainerMetrics()
    metrics.show_unread("reward", {f"reason {i}": 1 for i in range(500)})
    page = MetricsPage(_text_of(metrics))
    assert len(list(page.samples("rewardloop_trainer_unread_signals", model="reward"))) == 21
    assert page.total("rewardloop_trainer_unread_signals", reason="other") == 480


def _text_of(metrics: TrainerMetrics) -> str:
    return generate_latest(metrics.registry).decode()
