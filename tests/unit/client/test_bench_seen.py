"""What counts as work of the measured window."""

from __future__ import annotations

import time

import pytest

from rewardloop.v1 import reward_pb2
from rewardloop_cli.bench.seen import Seen

RESPONSE = reward_pb2.ScoreResponse(scores=[reward_pb2.ResponseScore(token_count=100)] * 2)


def test_a_request_counts_by_the_part_of_its_time_inside_the_window() -> None:
    now = time.perf_counter()
    seen = Seen(start=now - 10, end=now + 10)
    seen.take(now - 20, [RESPONSE], [])  # 10 of its 20 seconds
    assert seen.tokens == pytest.approx(100, rel=1e-3)
    assert (seen.requests, seen.responses) == (pytest.approx(0.5, rel=1e-3), pytest.approx(1, rel=1e-3))
    assert list(seen.latencies_s) == [], "it was due before the window"
    seen.take(now - 5, [RESPONSE], [])
    assert seen.requests == pytest.approx(1.5, rel=1e-3)
    assert list(seen.latencies_s) == [pytest.approx(5, rel=1e-3)]


def test_a_request_that_ends_after_the_window_counts_its_first_part_and_its_whole_latency() -> None:
    now = time.perf_counter()
    seen = Seen(start=now - 40, end=now - 30)
    seen.take(now - 32, [RESPONSE], [])
    assert seen.requests == pytest.approx(2 / 32, rel=1e-3)
    assert list(seen.latencies_s) == [pytest.approx(32, rel=1e-3)]
    seen.take(now - 20, [RESPONSE], [])
    assert seen.requests == pytest.approx(2 / 32, rel=1e-3), "wholly after the window"
    assert len(seen.latencies_s) == 1


def test_a_failed_request_is_no_work_and_no_latency_of_an_answer() -> None:
    from rewardloop_client import QueueFull

    now = time.perf_counter()
    seen = Seen(start=now - 10, end=now + 10)
    seen.take(now - 1, [], [QueueFull("full")])
    assert (seen.requests, list(seen.latencies_s), dict(seen.failures)) == (0.0, [], {"QUEUE_FULL": 1})
    assert list(seen.refused_s) == [pytest.approx(1, rel=1e-2)]
