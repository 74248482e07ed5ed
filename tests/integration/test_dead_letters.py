"""``rewardloop dead-letters`` on a real redis-server: letters are listed, requeued and dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.signals import choice

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.commands import dead_letters


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    connected = redis.Redis.from_url(redis_url)
    yield connected
    connected.close()


def bury(client: Any, data: bytes, reason: str) -> str:
    letter = {keys.DEAD_EVENT_FIELD: data, keys.DEAD_REASON_FIELD: reason, keys.DEAD_SOURCE_FIELD: "7-0"}
    return str(client.xadd(keys.DEAD_LETTERS, letter).decode())


def run(redis_url: str, *flags: str) -> int:
    return dead_letters.main(["--redis-url", redis_url, *flags])


def left(client: Any) -> list[str]:
    return [letter_id.decode() for letter_id, _ in client.xrange(keys.DEAD_LETTERS)]


def test_letters_are_listed_and_shown(client: Any, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    event = choice(1)
    event.caller = "shop"
    bury(client, event.SerializeToString(), "no prompt")
    broken = bury(client, b"\xff\xfe", "not a FeedbackEvent")
    assert run(redis_url) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert "e1 of shop  no prompt" in lines[0]
    assert "(no event)  not a FeedbackEvent" in lines[1]
    assert "question" not in said.out
    assert run(redis_url, "--output", "json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["event_id"], first["source_id"], second["bytes"]) == ("e1", "7-0", 2)
    assert run(redis_url, "--action", "show", "--id", broken) == 0
    assert json.loads(capsys.readouterr().out)["hex"] == "fffe"
    assert len(left(client)) == 2


def test_a_requeued_letter_is_an_entry_of_the_stream_again(client: Any, redis_url: str) -> None:
    ids = [bury(client, choice(i).SerializeToString(), "r") for i in range(40)]
    assert run(redis_url, "--action", "requeue", "--id", ids[3]) == 0
    ((_, fields),) = client.xrange(keys.FEEDBACK_STREAM)
    assert fields[keys.ID_FIELD.encode()] == b"e3"
    assert feedback_pb2.FeedbackEvent.FromString(fields[keys.EVENT_FIELD.encode()]) == choice(3)
    assert left(client) == [each for each in ids if each != ids[3]]
    assert run(redis_url, "--action", "requeue", "--all") == 0
    assert (client.xlen(keys.FEEDBACK_STREAM), left(client)) == (40, [])


def test_a_letter_without_an_event_stays(client: Any, redis_url: str) -> None:
    empty = bury(client, b"", "no field 'event'")
    assert run(redis_url, "--action", "requeue", "--all") == 1
    assert left(client) == [empty]
    assert run(redis_url, "--action", "drop", "--all") == 0
    assert left(client) == []


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (["--action", "drop"], 2, "name a letter"),
        (["--id", "1-0", "--all"], 2, "exclude each other"),
        (["--action", "drop", "--id", "1-0"], 1, "no letter has the id 1-0"),
        (["--redis-url", "redis://127.0.0.1:1/0"], 1, "Redis does not answer"),
    ],
)
def test_what_cannot_be_done_is_said(
    redis_url: str, flags: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(redis_url, *flags) == status
    assert says in capsys.readouterr().err
