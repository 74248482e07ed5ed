"""A published policy's live test through real processes: a poisoned version is rolled back, a good one promoted."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from support.policy_rounds import Setting
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.policy_workers import Worker
from support.processes import ServeProcess

from rewardloop.formats.store import ModelStore
from rewardloop_client import Feedback, Generation, RewardloopClient
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.pauses import Waiting
from rewardloop_trainer.rounds.trainer_state import RoundState
from rewardloop_trainer.vocabulary import Outcome

pytestmark = pytest.mark.long

MOST_COMPARISONS = 60


@pytest.fixture
def service(tmp_path: Path, redis_url: str) -> Iterator[RewardloopClient]:
    """A client of the serving process, which passes policy calls on to a worker; policy 1 is live."""
    publish_policy(ModelStore(tmp_path / "models"), small_llama(1), byte_encoder())
    worker = Worker(tmp_path, redis_url)
    server = ServeProcess(tmp_path / "models", redis_url, tmp_path / "serve.log", ("--policy-address", worker.address))
    server.start()
    try:
        worker.until_serving()
        server.wait_until_serving("rewardloop.v1.FeedbackService")
        with RewardloopClient(server.address, timeout_s=30.0) as client:
            client.promote("policy", "1")
            yield client
    finally:
        server.kill()
        worker.stop()


class People:
    """They prefer the candidate's answers with a probability, by the version that each answer names."""

    def __init__(self, client: RewardloopClient, likes_candidate: float) -> None:
        self._client = client
        self._likes_candidate = likes_candidate
        self._chance = random.Random(7)
        self.choices = 0

    def ask_until_one_compares(self) -> None:
        while not self._judge(self._client.generate("Hello", candidates=2, max_new_tokens=4)):
            pass

    def _judge(self, answer: Generation) -> bool:
        candidates = [i for i, c in enumerate(answer.candidates) if c.policy_version is not None]
        texts = [candidate.text for candidate in answer.candidates]
        if len(candidates) != 1 or texts[0] == texts[1] or not all(texts):  # an empty answer is a dead letter
            return False
        (new,) = candidates
        better = new if self._chance.random() < self._likes_candidate else 1 - new
        self.choices += 1
        who = f"person {self._likes_candidate} {self.choices}"
        about = {"generation_id": answer.generation_id, "annotator_id": who}
        self._client.record(Feedback.choice(chosen=better, rejected=1 - better, **about))
        return True


def until_decided(setting: Setting, people: People) -> Outcome:
    """Run the published round until it ends; each time that it waits, one person more compares the versions."""
    while True:
        try:
            return setting.round().run()
        except Waiting:
            assert people.choices < MOST_COMPARISONS
            known = setting.ledger.row_count
            people.ask_until_one_compares()
            deadline = time.monotonic() + 20
            while setting.ledger.row_count == known:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_people_roll_a_poisoned_version_back_and_promote_a_good_one(
    tmp_path: Path, redis_url: str, service: RewardloopClient
) -> None:
    store = ModelStore(tmp_path / "models")
    for seed in (2, 3):
        publish_policy(store, small_llama(seed), byte_encoder(), parent="1")
    setting = Setting(
        tmp_path, redis_url, server=service, store=store, live_test={"share": 0.9, "poll_s": 0.1, "alpha": 0.05}
    )
    stop = threading.Event()
    with closing(redis.Redis.from_url(redis_url)) as connection:
        consumer = Consumer(
            connection, setting.ledger, TrainerMetrics(), ConsumerSettings(flush_age_s=0.01, block_ms=20)
        )
        thread = threading.Thread(target=consumer.run, args=(stop,))
        thread.start()
        try:
            # By force: published without a gate.
            forced: RoundState = replace(setting.current.state, phase="published", version="2")
            setting.current.reach(forced)
            angry = People(service, likes_candidate=0.1)
            assert until_decided(setting, angry) == "refused"
            states = {info.version: info.state for info in service.list_versions("policy")}
            assert states == {"1": "active", "2": "stored", "3": "stored"}
            kept = json.loads((tmp_path / "work" / "refused" / "policy-1" / "reasons.json").read_text())
            assert "roll_back" in kept["reasons"][0]
            assert kept["metrics"]["live_preferences"] == angry.choices

            last = setting.ledger.last_stream_id
            assert last is not None
            setting.current.reach(replace(forced, number=2, version="3", until_stream_id=last))
            pleased = People(service, likes_candidate=0.9)
            assert until_decided(setting, pleased) == "promoted"
            assert service.get_version("policy").version == "3"
            assert service.generate("Hello", candidates=2).policy_version.version == "3"
            print(f"rolled back after {angry.choices} preferences, promoted after {pleased.choices}")
        finally:
            stop.set()
            thread.join()
