"""An endpoint that times out, returns garbage, is busy or refuses: each is told apart, and nothing is guessed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from support.judge_endpoint import Handler, JudgeEndpoint, completion, judge_endpoint

from rewardloop.formats.text import Turn
from rewardloop_trainer.judging.asked_chat import AskedChat, Patience
from rewardloop_trainer.judging.chat import Reply, Request
from rewardloop_trainer.judging.endpoint import Endpoint, EndpointChat
from rewardloop_trainer.judging.judge import JudgeAway, JudgeRefused, JudgeUnusable
from rewardloop_trainer.judging.replies import Budget, Replies, WorkFile

REQUEST = Request((Turn("system", "s"), Turn("user", "u")), max_tokens=7, temperature=0.5, seed=3)


def chat(endpoint: JudgeEndpoint, timeout_s: float = 5.0) -> EndpointChat:
    return EndpointChat(Endpoint(endpoint.url, "judge", "secret", timeout_s))


def test_a_call_sends_what_was_asked_and_reads_reply_version_and_cost() -> None:
    with judge_endpoint(lambda messages: messages[1]["content"]) as endpoint:
        assert chat(endpoint).complete(REQUEST) == Reply("u", "judge-2026-11", 100, 10)
    (body,) = endpoint.asked
    assert body == {
        "model": "judge",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
    }
    assert endpoint.headers[0]["authorization"] == "Bearer secret"


def slow(handler: Handler) -> None:
    time.sleep(1.0)


def drop(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def of_status(status: int, **headers: str) -> object:
    return lambda handler: handler.answer(status, {"error": {"message": "because\nof it"}}, **headers)


@pytest.mark.parametrize(
    ("fault", "reason", "retry_after_s"),
    [
        (of_status(429, retry_after="2"), "busy", 2.0),
        (of_status(429, retry_after_ms="250"), "busy", 0.25),
        (of_status(429, retry_after="Wed, 21 Oct 2026 07:28:00 GMT"), "busy", None),
        (of_status(500), "server", None),
        (of_status(503, retry_after="nan"), "server", None),
        (of_status(408), "timeout", None),
        (slow, "timeout", None),
        (drop, "connection", None),
        (lambda handler: handler.raw(200, b"\xff\xfe not json", "application/json"), "garbage", None),
        (lambda handler: handler.raw(200, b"<html>hello</html>", "text/html"), "garbage", None),
        (lambda handler: handler.answer(200, {"choices": []}), "garbage", None),
        (lambda handler: handler.answer(200, {"choices": [{"message": None}]}), "garbage", None),
        (lambda handler: handler.answer(200, completion(None)), "garbage", None),
        (lambda handler: handler.answer(200, [1, 2]), "garbage", None),
    ],
)
def test_what_may_pass_is_told_apart(fault: object, reason: str, retry_after_s: float | None) -> None:
    with (
        judge_endpoint(lambda messages: "x", faults=[fault]) as endpoint,
        pytest.raises(JudgeAway) as error,
    ):
        chat(endpoint, 0.3 if fault is slow else 5.0).complete(REQUEST)
    assert (error.value.reason, error.value.retry_after_s) == (reason, retry_after_s)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_closed_port_is_away_and_a_wrong_key_or_model_is_unusable() -> None:
    with pytest.raises(JudgeAway):
        EndpointChat(Endpoint("http://127.0.0.1:9/v1", "judge")).complete(REQUEST)
    for status in (401, 403, 404):
        with (
            judge_endpoint(lambda messages: "x", faults=[of_status(status)]) as endpoint,
            pytest.raises(JudgeUnusable, match=f"status {status}"),
        ):
            chat(endpoint).complete(REQUEST)
    with (
        judge_endpoint(lambda messages: "x", faults=[of_status(400)]) as endpoint,
        pytest.raises(JudgeRefused, match="because of it"),
    ):
        chat(endpoint).complete(REQUEST)


def test_a_busy_endpoint_is_waited_for_as_long_as_it_asks(tmp_path: Path) -> None:
    faults = [of_status(429, retry_after="0.3"), of_status(500), lambda handler: handler.raw(200, b"{", "text/plain")]
    outcomes: list[str] = []
    with judge_endpoint(lambda messages: "x", faults=faults) as endpoint:
        work = WorkFile(tmp_path)
        replies = Replies(work, Budget(calls=10))
        patience = Patience(attempts=4, first_pause_s=0.01, longest_pause_s=1.0)
        began = time.monotonic()
        asked = AskedChat(chat(endpoint), replies, patience, threading.Event(), outcomes.append)
        assert asked.complete(REQUEST).text == "x"
        assert time.monotonic() - began >= 0.3
        assert replies.spent().calls == 4
        work.close()
    assert outcomes == ["busy", "server", "garbage", "replied"]
