"""Feedback and scores over HTTP, by the client's fake."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.http_doors import door, fields

from rewardloop_client import NotAllowed, QueueFull, RedisUnavailable, UnknownGeneration, Violation
from rewardloop_client.fake import FakeRewardloop

OWN = {"prompt": "How?", "responses": ["so", "and so"]}


@pytest.mark.parametrize(
    ("signal", "kind"),
    [
        ({"kind": "choice", "chosen": 1, "rejected": 0, "strength": 0.5}, "choice"),
        ({"kind": "ranking", "order": [1, 0]}, "ranking"),
        ({"kind": "thumb", "up": False, "response": 1}, "thumb"),
        ({"kind": "rating", "value": 4, "minimum": 1, "maximum": 5}, "rating"),
        ({"kind": "edit", "edited_text": "better"}, "edit"),
        ({"kind": "tie"}, "tie"),
    ],
)
async def test_each_kind_of_signal_is_recorded(signal: dict[str, Any], kind: str) -> None:
    fake = FakeRewardloop()
    about = {
        **OWN,
        "annotator_id": "ann",
        "source": "implicit",
        "tags": {"page": "home"},
        "event_id": "e1",
        "event_time": "2026-11-01T10:00:00Z",
        "display_order": [1, 0],
        "aspect": "reward",
        "guideline_version": "v3",
    }
    async with door(fake) as http:
        reply = await http.post("/v1/feedback", json={**signal, **about})
        again = await http.post("/v1/feedback", json={**signal, **about})
    assert reply.status_code == 200, reply.text
    assert reply.json() == {"event_id": "e1", "stream_id": "1-0", "duplicate": False}
    assert again.json()["duplicate"]
    (event,) = fake.events
    assert event.WhichOneof("signal") == kind
    assert (event.annotator_id, event.source, dict(event.tags)) == ("ann", 3, {"page": "home"})
    assert list(event.display_order) == [1, 0]
    assert event.event_time.ToJsonString() == "2026-11-01T10:00:00Z"
    assert event.guideline_version == "v3"


async def test_many_signals_fail_one_by_one() -> None:
    fake = FakeRewardloop()
    events = [{"kind": "tie", **OWN}, {"kind": "thumb", "up": True, "response": 7, **OWN}]
    async with door(fake) as http:
        reply = await http.post("/v1/feedback", json={"events": events})
    good, bad = reply.json()["items"]
    assert good["error"] is None
    assert good["stream_id"]
    assert bad["error"]["reason"] == "INVALID_REQUEST"
    assert len(fake.events) == 1


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"kind": "thumb", "event_id": "e7", **OWN}, "events[1].up"),
        ({"kind": "thum", "event_id": "e7", **OWN}, "events[1].kind"),
        ({"event_id": "e7", **OWN}, "events[1].kind"),
        ({"kind": "tie", "event_id": "e7", "responce": 1, **OWN}, "events[1].responce"),
        ({"kind": "tie", "event_id": "e7", "event_time": "2026-11-01T10:00:00", **OWN}, "events[1].event_time"),
        ({"kind": "choice", "event_id": "e7", "chosen": 0, "rejected": 0, **OWN}, "events[1].rejected"),
    ],
)
async def test_a_misshapen_signal_of_many_fails_alone(bad: dict[str, Any], field: str) -> None:
    fake = FakeRewardloop()
    good = [{"kind": "tie", "event_id": f"good{i}", **OWN} for i in range(2)]
    async with door(fake) as http:
        reply = await http.post("/v1/feedback", json={"events": [good[0], bad, good[1]]})
    assert reply.status_code == 200, reply.text
    first, failed, last = reply.json()["items"]
    assert (first["event_id"], last["event_id"]) == ("good0", "good1")
    assert (failed["event_id"], failed["stream_id"], failed["error"]["param"]) == ("e7", "", field)
    assert failed["error"]["reason"] == "INVALID_REQUEST"
    assert [event.event_id for event in fake.events] == ["good0", "good1"]


@pytest.mark.parametrize("bad", [3, None, [], "thumb", {"kind": "tie", "event_id": "\ud800", **OWN}])
async def test_what_is_no_signal_among_many_is_an_item_that_failed(bad: Any) -> None:
    fake = FakeRewardloop()
    content = json.dumps({"events": [bad]})
    async with door(fake) as http:
        reply = await http.post("/v1/feedback", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text
    (item,) = reply.json()["items"]
    assert item["error"]["reason"] == "INVALID_REQUEST"
    assert fake.events == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "thumb", **OWN}, "up"),
        ({"kind": "thumb", "up": "yes", **OWN}, "up"),
        ({"kind": "thum", "up": True, **OWN}, "kind"),
        ({"up": True, **OWN}, "kind"),
        ({"kind": "thumb", "up": True, "responce": 1, **OWN}, "responce"),
        ({"kind": "choice", "chosen": 0, "rejected": 0, **OWN}, "rejected"),
        ({"kind": "thumb", "up": True, "event_time": "2026-11-01T10:00:00", **OWN}, "event_time"),
        ({"kind": "tie", "prompt": [{"role": "user", "content": 3}], "responses": ["a", "b"]}, "prompt[0].content"),
        ({"kind": "tie", "event_time": "0001-01-01T00:00:00+10:00", **OWN}, "event_time"),
        ({"events": []}, "events"),
    ],
)
async def test_a_wrong_field_is_named(body: dict[str, Any], field: str) -> None:
    async with door(FakeRewardloop()) as http:
        reply = await http.post("/v1/feedback", json=body)
    assert reply.status_code == 400
    assert fields(reply) == [field]
    error = reply.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (field, "INVALID_REQUEST", "invalid_request_error")


@pytest.mark.parametrize(
    ("content", "status", "field"),
    [
        (b"{", 400, "body"),
        (b"[" * 100_000, 400, None),
        (b'{"kind":"tie","x":NaN}', 400, "x"),
        (b"3", 400, "kind"),
        (b'{"kind":"tie","prompt":"a","responses":["\\ud800","b"]}', 400, "responses[0]"),
        (b'{"kind":"tie","\\ud800":1}', 400, "body"),
    ],
)
async def test_no_body_makes_a_bug(content: bytes, status: int, field: str | None) -> None:
    async with door(FakeRewardloop()) as http:
        reply = await http.post("/v1/feedback", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert field is None or fields(reply) == [field]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownGeneration("no such generation"), 404),
        (NotAllowed("no role"), 403),
        (QueueFull("busy", retry_after_s=0.33), 429),
        (RedisUnavailable("away", retry_after_s=2.0), 503),
    ],
)
async def test_failures_have_the_status_and_the_reason_of_the_call(error: Any, status: int) -> None:
    fake = FakeRewardloop(max_attempts=1)
    fake.fail("record", error)
    async with door(fake) as http:
        reply = await http.post("/v1/feedback", json={"kind": "tie", **OWN})
    assert reply.status_code == status
    assert reply.json()["error"]["reason"] == error.reason
    if error.retry_after_s is not None:
        assert reply.json()["error"]["retry_after_s"] == error.retry_after_s
        assert int(reply.headers["retry-after"]) >= error.retry_after_s


async def test_calls_of_tools_that_are_nested_deeply_are_refused() -> None:
    for depth in (40, 300, 900):
        deep = '{"a":' * depth + "1" + "}" * depth
        called = '{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":' + deep + "}}]}"
        body = '{"responses":["b"],"prompt":[' + called + ',{"role":"user","content":"x"}]}'
        async with door(FakeRewardloop()) as http:
            reply = await http.post("/v1/score", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400, depth


async def test_scores_one_group_and_many() -> None:
    async with door(FakeRewardloop(models={"helpful": lambda prompt, response: 7.0})) as http:
        one = await http.post("/v1/score", json=OWN)
        other = await http.post("/v1/score", json={**OWN, "model": "helpful"})
        many = await http.post("/v1/score", json={"groups": [OWN, {"prompt": "", "responses": ["a"]}]})
        wrong = await http.post("/v1/score", json={**OWN, "min_version": -1})
    assert [each["score"] for each in one.json()["scores"]] == [2.0, 6.0]
    assert one.json()["model_version"]["version"] == "1"
    assert [each["score"] for each in other.json()["scores"]] == [7.0, 7.0]
    assert [item["error"] and item["error"]["reason"] for item in many.json()["items"]] == [None, "INVALID_REQUEST"]
    assert fields(wrong) == ["min_version"]


async def test_health_is_that_of_scores_and_feedback() -> None:
    fake = FakeRewardloop()
    async with door(fake) as http:
        assert (await http.get("/healthz")).status_code == 503  # the fake knows no such service yet
        fake.services["rewardloop.v1.FeedbackService"] = True
        assert (await http.get("/healthz")).json()["status"] == "serving"
        fake.services["rewardloop.v1.PolicyService"] = False
        healthy = await http.get("/healthz")
        assert (healthy.status_code, healthy.json()["services"]["policy"]) == (200, False)
        fake.services["rewardloop.v1.RewardService"] = False
        assert (await http.get("/healthz")).status_code == 503


async def test_errors_name_fields_as_http_does() -> None:
    fake = FakeRewardloop(max_attempts=1)
    fake.fail(
        "record",
        type(UnknownGeneration("x"))("event.choice.chosen: 9", violations=[Violation("event.choice.chosen", "9")]),
    )
    async with door(fake) as http:
        reply = await http.post("/v1/feedback", json={"kind": "tie", **OWN})
    assert fields(reply) == ["chosen"]
    assert "event" not in reply.json()["error"]["message"]
