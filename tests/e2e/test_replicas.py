"""Three scoring servers on one Redis and one store: killed in turn under load, with no failed call seen by a caller."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from support.processes import ServeProcess
from support.reward_graphs import expected_logit, publish_sum_version

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop_client import Feedback, RewardloopClient, RewardloopError
from rewardloop_local.redis_server import EmbeddedRedis

pytestmark = pytest.mark.long

KILLS = 10


def until(holds: Callable[[], bool], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def active_at(replica: ServeProcess) -> str:
    try:
        with RewardloopClient(replica.address, timeout_s=5) as client:
            return client.get_version("reward").version
    except RewardloopError:
        return ""  # not there yet


def test_replicas_are_killed_in_turn_and_no_call_fails(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    for factor in (1.0, 2.0):
        publish_sum_version(store, factor=factor)
    embedded = EmbeddedRedis(tmp_path / "redis")
    embedded.start()
    replicas = [ServeProcess(tmp_path / "models", embedded.url, tmp_path / f"serve{i}.log") for i in range(3)]
    failures: list[str] = []
    versions: Counter[str] = Counter()
    acknowledged: list[str] = []
    stop = threading.Event()

    def call(caller: int) -> None:
        """One call after another, as a product's process does, with the client's own retries and no others."""
        with RewardloopClient([replica.address for replica in replicas], timeout_s=30) as client:
            number = 0
            while not stop.is_set():
                number += 1
                event_id = f"{caller}-{number}"
                signal = Feedback.choice(
                    prompt="alpha", responses=["beta", "gamma"], chosen=1, rejected=0, event_id=event_id
                )
                try:
                    group = client.score("alpha", ["beta", "gamma"])
                    client.record(signal)
                except RewardloopError as error:
                    failures.append(f"{error.reason or error.code}: {error}")
                    continue
                version = group.model_version.version
                versions[version] += 1
                acknowledged.append(event_id)
                if abs(group.scores[0].logit - expected_logit("alpha", "beta", float(version))) > 1e-3:
                    failures.append(f"not the score of version {version}")
                time.sleep(0.005)

    with ExitStack() as stack:
        stack.callback(embedded.stop)
        for replica in replicas:
            replica.start()
            stack.callback(replica.kill)
        for replica in replicas:
            replica.wait_until_serving()
        with RewardloopClient(replicas[0].address) as admin:
            admin.promote("reward", "1")
        until(lambda: all(active_at(replica) == "1" for replica in replicas))
        callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
        for caller in callers:
            caller.start()
        try:
            for kill in range(KILLS):
                replica = replicas[kill % len(replicas)]
                before = len(acknowledged)
                replica.kill()
                if kill == KILLS // 2:  # moved while one replica is down, which learns of it when it comes back
                    other = replicas[(kill + 1) % len(replicas)]
                    with RewardloopClient(other.address, timeout_s=30) as admin:
                        admin.promote("reward", "2")
                until(lambda before=before: len(acknowledged) > before + 20)  # type: ignore[misc]
                replica.start()
                replica.wait_until_serving()
            until(lambda: all(active_at(replica) == "2" for replica in replicas))
        finally:
            stop.set()
            for caller in callers:
                caller.join()
        with redis.Redis.from_url(embedded.url) as client:
            recorded = Counter(
                fields[keys.ID_FIELD.encode()].decode() for _, fields in client.xrange(keys.FEEDBACK_STREAM)
            )

    print(f"{KILLS} kills, {len(acknowledged)} pairs of calls, {len(failures)} failed")
    assert failures == []
    assert set(versions) == {"1", "2"}
    assert set(acknowledged) <= set(recorded)
    assert max(recorded.values()) == 1
