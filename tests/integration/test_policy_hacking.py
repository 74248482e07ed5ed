"""Reward hacking through real rounds: a judge that learning did not see contradicts the scores that it did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.policy_rounds import Setting, fake_server

from rewardloop.formats import keys
from rewardloop.v1 import reward_pb2
from rewardloop_client.fake import FakeRewardloop


class OfTwoMinds(FakeRewardloop):
    """Reward version 1, where it is pinned to judge, likes what the others dislike."""

    def _score(self, request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        reply = super()._score(request)
        for scored in reply.scores:
            scored.score *= -1 if request.pin_version == "1" else 1
        return reply


def reasons(directory: Path, number: int) -> str:
    return "\n".join(json.loads((directory / "work/refused" / f"policy-{number}/reasons.json").read_text())["reasons"])


@pytest.mark.learning
def test_hacked_score_halts_publishing_until_the_judge_agrees_again(tmp_path: Path, redis_url: str) -> None:
    setting = Setting(tmp_path, redis_url, server=fake_server(OfTwoMinds))
    first = setting.current.state

    def alarm() -> float | None:
        return setting.metrics.registry.get_sample_value("rewardloop_reward_hacking")

    def run(number: int, judge: str) -> str:
        policy = setting.settings.policy
        gate = policy.gate.model_copy(update={"judge": judge})
        setting.settings = setting.settings.model_copy(update={"policy": policy.model_copy(update={"gate": gate})})
        setting.current.reach(replace(first, number=number))
        return setting.round().run()

    setting.redis.hset(keys.ACTIVE, "reward", json.dumps({"version": "1", "previous": []}))
    assert run(1, "version:1") == "refused"
    assert "reward hacking, round 1: by score it beats the live policy" in reasons(tmp_path, 1)
    assert alarm() == 1.0

    # Another reward version proves nothing, and without a judge nothing can be proved.
    setting.redis.hset(keys.ACTIVE, "reward", json.dumps({"version": "2", "previous": ["1"]}))
    assert run(2, "live") == "refused"
    assert "reward hacking, round 1" in reasons(tmp_path, 2)

    assert run(3, "version:2") == "refused"
    assert "1 more candidates in a row" in reasons(tmp_path, 3)
    assert setting.store.versions("policy") == [1]
    assert run(4, "version:2") == "promoted"
    assert alarm() == 0.0
    figures = setting.store.manifest("policy", 2).metrics
    assert figures["gate_win_rate"] == figures["gate_score_win_rate"]
    shown = setting.metrics.registry.get_sample_value("rewardloop_trainer_policy_gate", {"figure": "gate_win_rate"})
    assert shown == figures["gate_win_rate"]
