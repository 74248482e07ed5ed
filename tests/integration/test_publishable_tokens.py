"""Tokens for pages: feedback about one generation, by one annotator, for a while, and nothing else."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from support.doors import METHODS, CallersFile, call, connected

from rewardloop.formats.tokens import PUBLISHABLE_PREFIX, claims_of, make_publishable
from rewardloop.v1 import feedback_pb2
from rewardloop_client import publishable_token

RECORD, RECORD_BATCH = "/rewardloop.v1.FeedbackService/Record", "/rewardloop.v1.FeedbackService/RecordBatch"
GENERATION = "0123.signed"


@pytest.fixture
def callers(tmp_path: Path) -> CallersFile:
    return CallersFile(tmp_path)


def event(generation: str = GENERATION, annotator: str = "ann") -> feedback_pb2.FeedbackEvent:
    return feedback_pb2.FeedbackEvent(
        event_id="e", generation_id=generation, annotator_id=annotator, thumb=feedback_pb2.Thumb(up=True)
    )


def record(*events: feedback_pb2.FeedbackEvent) -> bytes:
    return feedback_pb2.RecordRequest(event=events[0]).SerializeToString()


def batch(*events: feedback_pb2.FeedbackEvent) -> bytes:
    return feedback_pb2.RecordBatchRequest(events=events).SerializeToString()


async def test_it_gives_feedback_about_its_generation_and_calls_nothing_else(callers: CallersFile) -> None:
    token = publishable_token(
        callers.add("shop", "score", "feedback", "generate", "admin"), GENERATION, annotator_id="ann"
    )
    async with connected(callers=callers.path) as (door, channel):
        assert (await call(channel, RECORD, token, request=record(event()))).code == "OK"
        assert (await call(channel, RECORD_BATCH, token, request=batch(event(), event()))).code == "OK"
        for path in METHODS:
            if path not in (RECORD, RECORD_BATCH):
                ended = await call(channel, path, token)
                assert (ended.code, ended.reason) == ("PERMISSION_DENIED", "NOT_ALLOWED"), path
        assert door.behind.calls == ["Record", "RecordBatch"]


@pytest.mark.parametrize(
    "message",
    [record(event("other.signed")), record(event("")), record(event(annotator="other")), record(event(annotator=""))],
)
async def test_another_generation_or_annotator_is_refused(message: bytes, callers: CallersFile) -> None:
    token = publishable_token(callers.add("shop", "feedback"), GENERATION, annotator_id="ann")
    async with connected(callers=callers.path) as (door, channel):
        ended = await call(channel, RECORD, token, request=message)
        assert (ended.code, ended.reason) == ("PERMISSION_DENIED", "NOT_ALLOWED")
        mixed = batch(event(), feedback_pb2.RecordRequest.FromString(message).event)
        assert (await call(channel, RECORD_BATCH, token, request=mixed)).reason == "NOT_ALLOWED"
        assert door.behind.calls == []


async def test_it_is_as_good_as_the_token_that_it_was_made_from(callers: CallersFile) -> None:
    late = publishable_token(callers.add("late", "feedback", expires="2020-01-01T00:00:00Z"), GENERATION)
    scorer = publishable_token(callers.add("scorer", "score"), GENERATION)
    stranger = publishable_token("rlt_never_added", GENERATION)
    parent = callers.add("shop", "feedback")
    past = make_publishable(parent, GENERATION, "", time.time() - 5)
    far = make_publishable(parent, GENERATION, "", time.time() + 3 * 24 * 3600)
    message = record(event(annotator=""))
    async with connected(callers=callers.path) as (_door, channel):
        found = [
            (await call(channel, RECORD, each, request=message)).reason for each in (late, scorer, stranger, past, far)
        ]
    expired, wrong = "EXPIRED_CREDENTIALS", "WRONG_CREDENTIALS"
    assert found == [expired, "NOT_ALLOWED", wrong, expired, wrong]


def forged(token: str, **claims: Any) -> str:
    """The token with other claims and the old signature."""
    body, _, tag = token.removeprefix(PUBLISHABLE_PREFIX).partition(".")
    found = {**json.loads(urlsafe_b64decode(body + "==")), **claims}
    return f"{PUBLISHABLE_PREFIX}{urlsafe_b64encode(json.dumps(found).encode()).rstrip(b'=').decode()}.{tag}"


async def test_nobody_can_change_what_it_says(callers: CallersFile) -> None:
    parent = callers.add("shop", "feedback")
    token = publishable_token(parent, GENERATION)
    tries = [
        forged(token, g="other.signed"),
        forged(token, e=int(time.time()) + 3600),
        forged(token, a="other"),
        forged(token, x=1),
        forged(token, e="9"),
        token[:-1],
        token + "A",
        PUBLISHABLE_PREFIX + "e30.AAAA",
        PUBLISHABLE_PREFIX,
        PUBLISHABLE_PREFIX + "." * 10,
        token + "A" * 4000,
    ]
    async with connected(callers=callers.path) as (_door, channel):
        for each in tries:
            assert (await call(channel, RECORD, each, request=record(event()))).reason == "WRONG_CREDENTIALS", each
    assert parent not in token
    claims = claims_of(token)
    assert claims is not None
    assert claims.key_id not in callers.path.read_text()


@pytest.mark.parametrize("how", [{"lifetime_s": 0}, {"lifetime_s": 1e6}, {"generation_id": ""}])
def test_unsafe_ones_are_not_made(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lifetime|generation"):
        publishable_token("rlt_x", **{"generation_id": GENERATION, **how})
    with pytest.raises(ValueError, match="made from"):
        publishable_token(publishable_token("rlt_x", GENERATION), GENERATION)
