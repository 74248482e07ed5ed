"""A small message with millions of entries is refused by their number, before anything walks through them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rewardloop.formats.signals import signal_problems
from rewardloop.v1 import feedback_pb2, reward_pb2
from rewardloop_server.calls.errors import InvalidRequest
from rewardloop_server.calls.validate import Limits, validate_event, validate_signal
from rewardloop_server.doors.price import tokens_of

MILLIONS = 4_000_000


def cpu_seconds(work: Any) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def event(**fields: Any) -> feedback_pb2.FeedbackEvent:
    return feedback_pb2.FeedbackEvent(event_id="e", generation_id="g", **fields)


def refused(wrong: feedback_pb2.FeedbackEvent) -> None:
    with pytest.raises(InvalidRequest):
        validate_event(wrong, Limits(max_event_bytes=2**30))


@pytest.mark.parametrize(
    "wrong",
    [
        event(ranking=feedback_pb2.Ranking(order=[0] * MILLIONS)),
        event(thumb=feedback_pb2.Thumb(up=True), display_order=[0] * MILLIONS),
        event(thumb=feedback_pb2.Thumb(up=True), tags={str(i): "" for i in range(MILLIONS // 20)}),
    ],
    ids=["ranking", "display order", "tags"],
)
def test_an_event_is_refused_by_the_number_of_its_entries(wrong: feedback_pb2.FeedbackEvent) -> None:
    # protobuf walks through the entries once, to know the bytes; Python does not.
    assert cpu_seconds(lambda: refused(wrong)) < 0.05 + 2 * cpu_seconds(wrong.ByteSize)


def test_a_batch_is_priced_without_a_walk_through_millions_of_groups() -> None:
    batch = reward_pb2.ScoreBatchRequest.FromString(b"\x0a\x00" * MILLIONS)
    assert len(batch.groups) == MILLIONS
    assert cpu_seconds(lambda: tokens_of(batch)) < 0.5


def test_a_ranking_of_a_generation_is_checked_against_its_responses() -> None:
    wrong = event(ranking=feedback_pb2.Ranking(order=range(64)))
    assert list(signal_problems(wrong, None)) == []
    assert [field for field, _ in signal_problems(wrong, ["a", "b"])] == ["ranking.order"]


def test_an_event_has_a_bound_in_bytes_as_sent_and_as_filled_in() -> None:
    limits = Limits(max_event_bytes=10_000)
    large = feedback_pb2.FeedbackEvent(event_id="e", responses=["x" * 9_000, "y" * 2_000])
    large.prompt.text = "q"
    large.choice.chosen = 1
    for check in (validate_event, validate_signal):
        with pytest.raises(InvalidRequest, match="more than 10000"):
            check(large, limits)
