"""A whole round of a real trainer, as operators see it afterwards; and a mute that it honours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis
from support.signals import choice
from support.tiny_encoder import save_tiny_encoder
from support.trainers import Archiver

from rewardloop.formats import keys
from rewardloop.v1 import operations_pb2
from rewardloop_trainer.rounds.bulletin.publishing import published_rounds

pytestmark = pytest.mark.long

ROUND = (
    *("--reward-rounds", "--once", "--reward-min-signals", "40", "--torch-threads", "1", "--reward.epochs", "1"),
    *("--heldout-share", "0.5", "--reward.linear-start", "0"),
)


def test_refused_round_is_shown_with_its_reason_curve_and_people(tmp_path: Path, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    base = save_tiny_encoder(tmp_path / "base")
    client.hset(keys.MUTES, "user-1", operations_pb2.Mute(reason="a shared account").SerializeToString())
    for number in range(60):
        event = choice(number, prompts=30)
        event.annotator_id = f"user-{number % 3}"
        client.xadd(keys.FEEDBACK_STREAM, {"event": event.SerializeToString(), "id": event.event_id})
    trainer = Archiver(tmp_path, redis_url, "trainer", *ROUND, "--reward.base", str(base))
    trainer.start().wait(180)
    (shown,) = published_rounds(client).values()
    assert (shown.model, shown.number, shown.outcome) == ("reward", 1, "refused"), trainer.log
    assert [reason.rule for reason in shown.reasons] == ["evidence"]
    assert "more held-out prompts" in shown.reasons[0].text
    assert {"loss"} <= {curve.name for curve in shown.curves}
    crowd = operations_pb2.Crowd.FromString(client.get(keys.CROWD))
    assert {person.annotator_id: person.signals for person in crowd.people} == {f"user-{i}": 20 for i in range(3)}
    status = operations_pb2.TrainerStatus.FromString(client.get(keys.TRAINER_STATUS))
    (reward,) = status.models
    assert (reward.phase, reward.least_signals) == ("idle", 40)
    assert reward.gate_needs_prompts > 0
    (trust,) = (tmp_path / "work" / "refused").glob("*/trust.json")
    assert json.loads(trust.read_text())["muted"] == ["user-1"]
