"""A person is erased from a real deployment: no file holds their id or texts, also after kills in the middle."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.erasing import files_with, texts_of
from support.learning_runs import learning_seed
from support.signals import choice, put
from support.tiny_encoder import save_tiny_encoder
from support.trainers import Archiver
from support.up_processes import PATIENCE_S, Up

from rewardloop.formats import keys
from rewardloop.formats.erasing.erasures import Erasure, digest_of, new_key
from rewardloop.v1 import feedback_pb2
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.commands.export import main as export

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

PEOPLE = tuple(f"person-{name}" for name in ("ada", "berta", "carla", "dora", "emma"))
GONE = PEOPLE[2]


def said(number: int) -> feedback_pb2.FeedbackEvent:
    """A choice of one of five people. Every text of it is unique, and names nobody."""
    event = choice(number, prompts=1_000_000)
    person = PEOPLE[number % len(PEOPLE)]
    event.event_id = f"event-{number:06}"
    event.prompt.text = f"what is number {number:06}?"
    event.responses[:] = [f"poor answer {number:06}.", f"good answer {number:06}."]
    event.annotator_id = person
    event.tags["app"] = "shop"
    event.ClearField("arrival_time")
    return event


def needles(events: list[feedback_pb2.FeedbackEvent]) -> list[bytes]:
    return sorted({text.encode() for event in events for text in texts_of(event)})


def erase(address: str, *args: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "rewardloop_cli.main", "feedback", "erase", "--json", "--server", address, *args]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, input=f"{GONE}\n")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def kill_trainer(up: Up) -> None:
    """As ``kill -9`` does. `rewardloop up` starts it again."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "rewardloop_trainer" in command and str(up.data / "trainer") in command:
            process.kill()


@pytest.mark.learning
def test_no_file_of_a_deployment_holds_an_erased_person(tmp_path: Path) -> None:
    base = save_tiny_encoder(tmp_path / "base", learning_seed())
    assert export(["--base", str(base), "--store", str(tmp_path / "data" / "models"), "--heads", "2"]) == 0
    up = Up(tmp_path / "data", tmp_path / "up.log", f"--spool {tmp_path / 'data' / 'spool'}")
    events = [said(number) for number in range(400)]
    theirs = [event for event in events if event.annotator_id == GONE]
    with up.running() as client:
        client.record_batch(events)
        up.until(lambda: client.get_version("reward").version == "2")
        up.until(lambda: len(up.archived()) == len(events))
        before = files_with(up.data, *needles(theirs))
        assert {path.suffix for path in before} >= {".parquet", ".sqlite"}, before
        progress = erase(up.address, "--annotator", "-")
        assert files_with(tmp_path, *needles(theirs)) == []
        kept = Ledger(up.data / "ledger", writable=False).scan()
        left = [event for event in events if event.annotator_id != GONE]
        assert [(row.event.event_id, texts_of(row.event)) for row in kept] == [
            (event.event_id, texts_of(event)) for event in left
        ]
        assert {"model": "reward", "version": "2", "directly": True} in progress["versions"]
        assert "1" not in {each["version"] for each in progress["versions"]}
        more = [said(number) for number in range(1_000, 1_300)]
        client.record_batch([event for event in more if event.annotator_id != GONE])
        up.until(lambda: int(client.get_version("reward").version) > 2)  # it learns on
        assert client.record(events[2]).erased
    assert files_with(tmp_path, *needles(theirs)) == []


@pytest.mark.learning
def test_the_trainer_of_a_deployment_is_killed_while_it_erases(tmp_path: Path) -> None:
    base = save_tiny_encoder(tmp_path / "base", learning_seed())
    assert export(["--base", str(base), "--store", str(tmp_path / "data" / "models"), "--heads", "2"]) == 0
    up = Up(tmp_path / "data", tmp_path / "up.log")
    events = [said(number) for number in range(150)]  # too few for a round
    with up.running() as client:
        client.record_batch(events)
        up.until(lambda: len(up.archived()) == len(events))
        begun = client.erase(annotator_id=GONE)
        for pause in (0.3, 0.6):
            time.sleep(pause)
            kill_trainer(up)
        progress = erase(up.address, "--erasure", begun.erasure_id)
    assert progress["done"]
    assert files_with(tmp_path, *needles([event for event in events if event.annotator_id == GONE])) == []
    assert len(up.archived()) == 120


def test_an_archiver_that_is_killed_at_any_moment_erases_all_in_the_end(tmp_path: Path) -> None:
    chance = random.Random(5)
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    import redis

    client = redis.Redis.from_url(server.url)
    archiver = Archiver(tmp_path, server.url, "trainer", "--flush-rows", "500")
    try:
        events = []
        for number in range(20_000):
            event = said(number)
            event.arrival_time.FromMilliseconds(1_700_000_000_000 + number)
            events.append(event)
        archiver.start()
        put(client, *events)
        deadline = time.monotonic() + 120
        while client.xlen(keys.FEEDBACK_STREAM):
            assert time.monotonic() < deadline, archiver.log
            time.sleep(0.1)
        archiver.kill()
        name, secret = new_key()
        asked = Erasure("e1", "annotator", digest_of(secret, "annotator", GONE).hex(), name, None, time.time())
        client.hset(keys.ERASURE_KEYS, name, secret.hex())
        client.hset(keys.ERASURES, asked.erasure_id, asked.to_json())
        client.incr(keys.ERASURES_CHANGED)
        kills = 0
        while not client.hexists(keys.ERASURE_REPORTS + "e1", "trainer") and kills < 6:
            archiver.start()
            archiver.wait_for_log("erasing")
            time.sleep(chance.uniform(0.0, 0.4))
            kills += not client.hexists(keys.ERASURE_REPORTS + "e1", "trainer")
            archiver.kill()
        archiver.start()
        while not client.hexists(keys.ERASURE_REPORTS + "e1", "trainer"):
            assert time.monotonic() < deadline + 120, archiver.log
            time.sleep(0.1)
        archiver.kill()
    finally:
        archiver.kill_all()
        client.close()
        server.stop()
    assert kills
    theirs = needles([event for event in events if event.annotator_id == GONE])
    assert files_with(tmp_path, GONE.encode(), *theirs[:: len(theirs) // 200]) == []
    left = {row.event.event_id for row in Ledger(tmp_path / "ledger", writable=False).scan()}
    assert left == {event.event_id for event in events if event.annotator_id != GONE}
