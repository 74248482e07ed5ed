"""``kill -9`` of the server and of Redis: nothing acknowledged is lost, nothing is counted twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import redis
from support.processes import serving
from support.reward_graphs import publish_sum_version

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2
from rewardloop_client import AsyncRewardloopClient, Feedback, RewardloopClient, RewardloopError
from rewardloop_local.redis_server import EmbeddedRedis

pytestmark = pytest.mark.long

FEEDBACK_SERVICE = "rewardloop.v1.FeedbackService"


def recorded_ids(redis_url: str) -> list[str]:
    """event_id of every entry of the stream, repeated ones too."""
    with redis.Redis.from_url(redis_url) as client:
        entries = client.xrange(keys.FEEDBACK_STREAM)
    return [feedback_pb2.FeedbackEvent.FromString(fields[keys.EVENT_FIELD.encode()]).event_id for _, fields in entries]


def choice(event_id: str) -> feedback_pb2.FeedbackEvent:
    return Feedback.choice(prompt="alpha", responses=["beta", "gamma"], chosen=1, rejected=0, event_id=event_id)


def test_server_killed_under_load_loses_and_doubles_no_acknowledged_signal(
    tmp_path: Path, empty_redis_url: str
) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    acknowledged: list[str] = []
    stop = threading.Event()

    with serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log") as server:

        def call(caller: int) -> None:
            with RewardloopClient(server.address, timeout_s=3) as client:
                number = 0
                while not stop.is_set():
                    number += 1
                    event = choice(f"{caller}-{number}")
                    while not stop.is_set():
                        try:
                            client.score("alpha", ["beta"])
                            client.record(event)
                            acknowledged.append(event.event_id)
                            break
                        except RewardloopError:
                            time.sleep(0.02)  # sent again under the same event_id, as callers do

        callers = [threading.Thread(target=call, args=(i,)) for i in range(6)]
        for caller in callers:
            caller.start()
        for _ in range(3):
            before = len(acknowledged)
            while len(acknowledged) < before + 200:
                time.sleep(0.01)
            server.kill()
            server.start()
            server.wait_until_serving()
        stop.set()
        for caller in callers:
            caller.join()

    counted = Counter(recorded_ids(empty_redis_url))
    assert len(acknowledged) >= 600
    assert set(acknowledged) <= set(counted)
    assert max(counted.values()) == 1


async def test_server_killed_while_signals_are_written_together_loses_and_doubles_none(
    tmp_path: Path, empty_redis_url: str
) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def call(client: AsyncRewardloopClient, caller: int) -> None:
        size = 1 if caller % 4 else 150  # more than one write takes
        number = 0
        while not stop.is_set():
            number += 1
            events = [choice(f"{caller}-{number}-{i}") for i in range(size)]
            while not stop.is_set():
                try:
                    results = await client.record_batch(events) if size > 1 else [await client.record(events[0])]
                except RewardloopError:
                    await asyncio.sleep(0.02)  # sent again under the same event_ids, as callers do
                    continue
                if any(isinstance(result, RewardloopError) for result in results):
                    continue
                acknowledged.extend(event.event_id for event in events)
                break

    def kill_three_times() -> None:
        for _ in range(3):
            before, deadline = len(acknowledged), time.monotonic() + 60
            while len(acknowledged) < before + 2000:
                assert time.monotonic() < deadline, f"{len(acknowledged) - before} signals acknowledged in a minute"
                time.sleep(0.01)
            server.kill()
            server.start()
            server.wait_until_serving()

    with serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log") as server:
        async with AsyncRewardloopClient(server.address, timeout_s=10, max_attempts=1) as client:
            callers = [asyncio.create_task(call(client, i)) for i in range(40)]
            try:
                await asyncio.to_thread(kill_three_times)
            finally:
                stop.set()
                await asyncio.gather(*callers)

    counted = Counter(recorded_ids(empty_redis_url))
    assert set(acknowledged) <= set(counted)
    assert max(counted.values()) == 1


def test_redis_killed_during_an_import_loses_and_doubles_no_row(tmp_path: Path) -> None:
    rows = 6000
    file = tmp_path / "pairs.jsonl"
    with file.open("w") as lines:
        for i in range(rows):
            lines.write(json.dumps({"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"}) + "\n")
    embedded = EmbeddedRedis(tmp_path / "redis")
    embedded.start()
    publish_sum_version(ModelStore(tmp_path / "models"))
    try:
        with serving(tmp_path / "models", embedded.url, tmp_path / "serve.log") as server:
            server.wait_until_serving(FEEDBACK_SERVICE)
            argv = [sys.executable, "-m", "rewardloop_cli.main", "feedback", "import", str(file)]
            importing = subprocess.Popen([*argv, "--server", server.address], stdout=subprocess.PIPE)
            with redis.Redis.from_url(embedded.url) as client:
                while client.xlen(keys.FEEDBACK_STREAM) < 1000:
                    assert importing.poll() is None, "the import ended before it could be disturbed"
                    time.sleep(0.002)
            assert embedded.pid is not None
            os.kill(embedded.pid, signal.SIGKILL)
            time.sleep(0.5)
            assert importing.poll() is None
            embedded.start()
            assert importing.wait(120) == 0
        counted = Counter(recorded_ids(embedded.url))
    finally:
        embedded.stop()
    assert len(counted) == rows
    assert max(counted.values()) == 1
