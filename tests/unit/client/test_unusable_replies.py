"""A reply that breaks the contract is a typed error, never a wrong result, in both clients and every way of scoring."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.message import Message

from rewardloop.v1 import feedback_pb2, model_pb2, policy_pb2, reward_pb2
from rewardloop_client import (
    Feedback,
    InternalError,
    InvalidReply,
    InvalidRequest,
    RewardloopClient,
    RewardloopError,
    ScoreResult,
    Violation,
)
from rewardloop_client import _calls as calls
from rewardloop_client._errors import from_status, to_status
from rewardloop_client.fake import FakeRewardloop

GROUP = ("p", ["a", "bc"])


def _with_scores(count: int) -> Callable[[reward_pb2.ScoreResponse], None]:
    def change(reply: reward_pb2.ScoreResponse) -> None:
        del reply.scores[:]
        reply.scores.extend(reward_pb2.ResponseScore(score=1.0) for _ in range(count))

    return change


def _with_value(field: str, value: float) -> Callable[[reward_pb2.ScoreResponse], None]:
    def change(reply: reward_pb2.ScoreResponse) -> None:
        setattr(reply.scores[1], field, value)

    return change


def _without_version(reply: reward_pb2.ScoreResponse) -> None:
    reply.ClearField("model_version")


WRONG = {
    "no score": _with_scores(0),
    "one score": _with_scores(1),
    "five scores": _with_scores(5),
    "score NaN": _with_value("score", math.nan),
    "logit infinite": _with_value("logit", -math.inf),
    "uncertainty NaN": _with_value("uncertainty", math.nan),
    "no version": _without_version,
}


class Broken(FakeRewardloop):
    """A fake whose replies are changed on the way: each scored group, and each reply of an RPC as a whole."""

    def __init__(
        self,
        change: Callable[[reward_pb2.ScoreResponse], None] = lambda _: None,
        replies: dict[str, Callable[[Any], Message]] | None = None,
        streamed: Callable[[reward_pb2.ScoreStreamResponse], None] = lambda _: None,
    ) -> None:
        self._change = change
        self._streamed = streamed
        super().__init__()
        for path, answer in (replies or {}).items():
            self._answers[path] = answer

    def _score(self, request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        reply = super()._score(request)
        self._change(reply)
        return reply

    def _stream(self, path: str, request: Message) -> Iterator[Message]:
        for reply in super()._stream(path, request):
            if isinstance(reply, reward_pb2.ScoreStreamResponse):
                self._streamed(reply)
            yield reply


async def _every_way(fake: FakeRewardloop) -> list[ScoreResult | RewardloopError]:
    """The outcome of one group by each RPC and client."""
    client = fake.as_async()
    found: list[ScoreResult | RewardloopError] = []
    for score in (lambda: fake.score(*GROUP), lambda: client.score(*GROUP)):
        try:
            outcome = score()
            found.append(outcome if isinstance(outcome, ScoreResult) else await outcome)
        except RewardloopError as error:
            found.append(error)
    found += fake.score_batch([GROUP])
    found += await client.score_batch([GROUP])
    found += list(fake.score_stream([GROUP]))
    found += [outcome async for outcome in client.score_stream([GROUP])]
    return found


async def test_a_whole_reply_passes_every_way() -> None:
    found = await _every_way(Broken())
    assert [outcome.values for outcome in found if isinstance(outcome, ScoreResult)] == [(1.0, 2.0)] * 6


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_group_that_was_scored_wrongly_is_an_error_every_way(wrong: str) -> None:
    found = await _every_way(Broken(WRONG[wrong]))
    assert [type(outcome) for outcome in found] == [InvalidReply] * 6
    assert all(str(outcome) for outcome in found)


def _drop_items(reply: type[Message]) -> Callable[[Any], Message]:
    return lambda request: reply()


def _twice(request: reward_pb2.ScoreBatchRequest) -> reward_pb2.ScoreBatchResponse:
    item = reward_pb2.ScoreBatchItem()
    item.error.CopyFrom(to_status(InternalError("x")))
    return reward_pb2.ScoreBatchResponse(items=[item] * (2 * len(request.groups)))


def _hollow(request: reward_pb2.ScoreBatchRequest) -> reward_pb2.ScoreBatchResponse:
    return reward_pb2.ScoreBatchResponse(items=[reward_pb2.ScoreBatchItem() for _ in request.groups])


@pytest.mark.parametrize("answer", [_drop_items(reward_pb2.ScoreBatchResponse), _twice])
async def test_a_batch_with_another_number_of_items_is_an_error(answer: Callable[[Any], Message]) -> None:
    fake = Broken(replies={calls.SCORE_BATCH: answer})
    with pytest.raises(InvalidReply, match="items"):
        fake.score_batch([GROUP])
    with pytest.raises(InvalidReply, match="items"):
        await fake.as_async().score_batch([GROUP])


def test_an_item_with_neither_result_nor_error_fails_alone() -> None:
    (outcome,) = Broken(replies={calls.SCORE_BATCH: _hollow}).score_batch([GROUP])
    assert isinstance(outcome, InvalidReply)


async def test_a_stream_reply_with_neither_result_nor_error_fails_alone() -> None:
    fake = Broken(streamed=lambda reply: reply.ClearField("result"))
    (outcome,) = fake.score_stream([GROUP])
    assert isinstance(outcome, InvalidReply)


@pytest.mark.parametrize("request_id", ["7", "x", "", "-1"])
async def test_a_stream_reply_to_no_request_ends_the_stream(request_id: str) -> None:
    def rename(reply: reward_pb2.ScoreStreamResponse) -> None:
        reply.request_id = request_id

    fake = Broken(streamed=rename)
    with pytest.raises(InvalidReply, match="request_id"):
        list(fake.score_stream([GROUP]))
    with pytest.raises(InvalidReply, match="request_id"):
        [outcome async for outcome in fake.as_async().score_stream([GROUP])]


async def test_a_second_reply_to_a_request_ends_the_stream() -> None:
    def repeat(reply: reward_pb2.ScoreStreamResponse) -> None:
        reply.request_id = "0"

    fake = Broken(streamed=repeat)
    outcomes = fake.score_stream([GROUP, GROUP])
    assert next(outcomes).values == (1.0, 2.0)
    with pytest.raises(InvalidReply, match="request_id"):
        next(outcomes)


async def test_a_stream_that_ends_before_every_group_was_answered_is_an_error() -> None:
    class Short(FakeRewardloop):
        pass

    fake = Short()
    whole = fake._transport.stream

    def stream(*args: Any) -> Any:
        replies = whole(*args)
        yield next(replies)
        for _ in replies:
            pass

    fake._transport.stream = stream  # type: ignore[method-assign]
    outcomes = fake.score_stream([GROUP, GROUP])
    assert next(outcomes).values == (1.0, 2.0)
    with pytest.raises(InvalidReply, match="1 group"):
        next(outcomes)


def test_a_batch_of_signals_with_another_number_of_items_is_an_error() -> None:
    fake = Broken(replies={calls.RECORD_BATCH: _drop_items(feedback_pb2.RecordBatchResponse)})
    event = Feedback.thumb(prompt="p", responses=["a"], up=True)
    with pytest.raises(InvalidReply, match="items"):
        fake.record_batch([event])


def test_an_item_of_signals_with_neither_result_nor_error_fails_alone() -> None:
    hollow = feedback_pb2.RecordBatchResponse(items=[feedback_pb2.RecordBatchItem()])
    (outcome,) = Broken(replies={calls.RECORD_BATCH: lambda _: hollow}).record_batch(
        [Feedback.thumb(prompt="p", responses=["a"], up=True)]
    )
    assert isinstance(outcome, InvalidReply)


@pytest.mark.parametrize(
    ("path", "reply", "call"),
    [
        (calls.GENERATE, policy_pb2.GenerateResponse(), lambda c: c.generate("p", candidates=2)),
        (calls.GET_VERSION, model_pb2.GetVersionResponse(), lambda c: c.get_version("reward")),
        (calls.PROMOTE, model_pb2.PromoteResponse(), lambda c: c.promote("reward", "1")),
        (calls.ROLLBACK, model_pb2.RollbackResponse(), lambda c: c.rollback("reward")),
    ],
)
async def test_an_empty_reply_is_an_error(path: str, reply: Message, call: Callable[[RewardloopClient], Any]) -> None:
    with pytest.raises(InvalidReply):
        call(Broken(replies={path: lambda _: reply}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("part", "field"),
    [
        *(("candidates[1]", field) for field in ("log_probability", "score", "uncertainty")),
        *(("chosen", field) for field in ("random_share", "set_probability", "expected_information")),
    ],
)
async def test_a_generation_with_a_number_that_is_not_finite_is_an_error(part: str, field: str, value: float) -> None:
    reply = policy_pb2.GenerateResponse(generation_id="g", candidates=[policy_pb2.Candidate() for _ in range(2)])
    reply.policy_version.version = reply.chosen.reward_version.version = "1"
    fake = Broken(replies={calls.GENERATE: lambda _: reply})
    assert len(fake.generate("p", candidates=2).candidates) == 2
    setattr(reply.chosen if part == "chosen" else reply.candidates[1], field, value)
    with pytest.raises(InvalidReply, match=rf"{re.escape(part)}\.{field}"):
        fake.generate("p", candidates=2)
    with pytest.raises(InvalidReply, match=rf"{re.escape(part)}\.{field}"):
        await fake.as_async().generate("p", candidates=2)


def test_an_enum_value_of_a_newer_server_is_unspecified() -> None:
    candidate = policy_pb2.Candidate(text="t")
    candidate.finish_reason = 99  # type: ignore[assignment]
    reply = policy_pb2.GenerateResponse(generation_id="g", candidates=[candidate])
    reply.policy_version.version = "1"
    (found,) = Broken(replies={calls.GENERATE: lambda _: reply}).generate("p").candidates
    assert found.finish_reason == "unspecified"


def test_an_invalid_reply_is_an_internal_error_that_no_server_can_name() -> None:
    assert issubclass(InvalidReply, InternalError)
    assert InvalidReply("x").reason == ""
    assert not InvalidReply("x").may_retry
    assert type(from_status(to_status(InternalError("x")))) is InternalError


@pytest.mark.parametrize(
    ("message", "violations", "text"),
    [
        ("prompt: too long", [("prompt", "too long")], "prompt: too long"),
        ("prompt: it is far too long", [("prompt", "it is far…")], "prompt: it is far too long"),
        ("prompt: a (and 1 more)", [("prompt", "a"), ("seed", "b")], "prompt: a (and 1 more) (seed: b)"),
        ("wrong", [("prompt", "a")], "wrong (prompt: a)"),
    ],
)
def test_a_violation_is_said_once(message: str, violations: list[tuple[str, str]], text: str) -> None:
    error = InvalidRequest(message, violations=[Violation(*each) for each in violations])
    assert str(error) == text
    assert str(from_status(to_status(error))) == text
