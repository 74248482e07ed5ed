"""A caller's quota is the same however many fronts its calls come through."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from rewardloop_server.channel.shared_quotas import SharedQuotas
from rewardloop_server.doors.quotas import Quota


def test_rate_is_shared_by_the_fronts(tmp_path: Path) -> None:
    quota = Quota(requests_per_s=0.001, burst_s=10_000)  # ten at once
    fronts = [SharedQuotas(tmp_path, number, 3)("shop", quota) for number in range(3)]
    assert sum(fronts[i % 3].enter() is None for i in range(30)) == 10
    refused = fronts[1].enter()
    assert refused is not None
    assert refused[0] == "requests"


def test_what_one_front_takes_another_has_not(tmp_path: Path) -> None:
    quota = Quota(tokens_per_s=1.0, burst_s=100)
    one, other = (SharedQuotas(tmp_path, number, 2)("shop", quota) for number in range(2))
    assert other.pause_s() == 0
    one.take(tokens=150, size=0)
    assert other.pause_s() == pytest.approx(51, abs=1)
    assert other.enter() is not None


def test_requests_in_flight_are_counted_together_and_a_dead_fronts_are_forgotten(tmp_path: Path) -> None:
    quota = Quota(concurrent=3)
    one, other = (SharedQuotas(tmp_path, number, 2)("shop", quota) for number in range(2))
    assert [one.enter(), other.enter(), one.enter()] == [None] * 3
    assert other.enter() is not None
    other.leave()
    assert one.enter() is None
    assert other.enter() is not None
    again = SharedQuotas(tmp_path, 0, 2)("shop", quota)  # the front in the place of the first, which had three
    assert [again.enter(), other.enter(), other.enter()] == [None] * 3
    assert again.enter() is not None


def test_callers_and_quotas_are_kept_apart(tmp_path: Path) -> None:
    shared = SharedQuotas(tmp_path, 0, 1)
    assert shared("a", Quota(concurrent=1)).enter() is None
    assert shared("b", Quota(concurrent=1)).enter() is None
    assert shared("a", Quota(concurrent=2)).enter() is None
    assert shared("a", Quota(concurrent=1)).enter() is not None
    assert shared("c", Quota()).enter() is None
    assert len(list(tmp_path.iterdir())) == 3, "a caller without a quota has no file"
    gc.collect()
