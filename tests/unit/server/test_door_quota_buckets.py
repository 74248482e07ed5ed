"""Token buckets by a clock that the test turns."""

from __future__ import annotations

import pytest

from rewardloop_server.doors.quotas import Allowance, Quota


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admitted(allowance: Allowance) -> bool:
    return allowance.enter() is None


def test_rate_holds_over_time() -> None:
    clock = Clock()
    allowance = Allowance("shop", Quota(requests_per_s=10, burst_s=2), clock)
    served = 0
    for _ in range(1000):  # 100 s, 10 asked for every tenth
        served += sum(admitted(allowance) for _ in range(10))
        clock.now += 0.1
    assert served == pytest.approx(10 * 100 + 20, abs=2)


def test_burst_is_what_it_says_and_fills_no_further() -> None:
    clock = Clock()
    allowance = Allowance("shop", Quota(requests_per_s=10, burst_s=2), clock)
    assert sum(admitted(allowance) for _ in range(100)) == 20
    clock.now += 1000
    assert sum(admitted(allowance) for _ in range(100)) == 20


def test_wait_that_is_asked_for_is_the_wait_that_helps() -> None:
    clock = Clock()
    allowance = Allowance("shop", Quota(tokens_per_s=100), clock)
    assert admitted(allowance)
    allowance.take(tokens=1200, size=0)
    quota, refusal = allowance.enter() or pytest.fail("not refused")
    assert quota == "tokens"
    assert refusal.retry_after_ms == pytest.approx(10_010, abs=1)
    clock.now += 9.9
    assert not admitted(allowance)
    clock.now = 1000.0 + (refusal.retry_after_ms or 0) / 1000 + 0.001
    assert admitted(allowance)


def test_refused_request_costs_nothing() -> None:
    clock = Clock()
    allowance = Allowance("shop", Quota(requests_per_s=1, bytes_per_s=100, burst_s=10), clock)
    assert admitted(allowance)
    allowance.take(tokens=0, size=2000)
    for _ in range(50):
        assert not admitted(allowance)
    clock.now += 11
    assert sum(admitted(allowance) for _ in range(50)) == 10


def test_requests_in_flight() -> None:
    allowance = Allowance("shop", Quota(concurrent=2), Clock())
    assert [admitted(allowance) for _ in range(3)] == [True, True, False]
    allowance.leave()
    assert [admitted(allowance) for _ in range(2)] == [True, False]


def test_no_quota_bounds_nothing() -> None:
    allowance = Allowance("shop", Quota(), Clock())
    assert not allowance.is_bounded
    assert not allowance.measures
    assert all(admitted(allowance) for _ in range(1000))
    assert allowance.pause_s() == 0
