"""What a number of seconds may be, and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from rewardloop_client import Connection, Hedging, RewardloopClient, deadline, time_left
from rewardloop_client._deadline import bounded
from rewardloop_client._retry import Send
from rewardloop_client.fake import FakeRewardloop


def _sent_with(timeout_s: float | None, own_s: float = 10.0) -> float | None:
    fake = FakeRewardloop()
    fake._rules = type(fake._rules)(own_s, "production", fake._rules.policy, None)
    seen: list[Send] = []
    unary = fake._transport.unary
    fake._transport.unary = lambda send: (seen.append(send), unary(send))[1]  # type: ignore[method-assign]
    fake.score("p", ["a"], timeout_s=timeout_s)
    return seen[0].timeout_s


@pytest.mark.parametrize("forever", [math.inf, 1e300, 1e18, 1e10])
def test_no_end_is_no_deadline(forever: float) -> None:
    assert bounded(forever) is None
    assert _sent_with(forever) is None
    assert _sent_with(None, own_s=forever) is None
    with deadline(forever):
        assert time_left() is None


def test_a_deadline_around_bounds_a_call_without_an_end() -> None:
    with deadline(5):
        left = _sent_with(math.inf)
    assert left is not None
    assert 4 < left <= 5


CALLS: dict[str, Callable[[RewardloopClient, float], Any]] = {
    "score": lambda c, s: c.score("p", ["a"], timeout_s=s),
    "score_batch": lambda c, s: c.score_batch([("p", ["a"])], timeout_s=s),
    "score_stream": lambda c, s: list(c.score_stream([("p", ["a"])], timeout_s=s)),
    "generate": lambda c, s: c.generate("p", timeout_s=s),
    "promote": lambda c, s: c.promote("reward", "1", timeout_s=s),
    "health": lambda c, s: c.health(timeout_s=s),
    "watch_versions": lambda c, s: next(c.watch_versions("reward", timeout_s=s)),
    "wait_until_active": lambda c, s: c.wait_until_active("reward", "1", timeout_s=s),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seconds", [math.nan, -1.0, -math.inf])
def test_what_is_no_length_of_time_is_refused_by_every_call(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        CALLS[name](FakeRewardloop(), seconds)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seconds", ["5", [5], object()])
def test_a_time_of_another_type_is_refused_by_every_call(name: str, seconds: Any) -> None:
    with pytest.raises(TypeError, match=r"timeout_s: is .*, not a number of seconds"):
        CALLS[name](FakeRewardloop(), seconds)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_may_take_for_ever(name: str) -> None:
    assert CALLS[name](FakeRewardloop(), math.inf)


@pytest.mark.parametrize("seconds", [math.nan, -1.0])
def test_a_client_refuses_such_a_length_of_time_for_all_calls(seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        RewardloopClient("127.0.0.1:1", timeout_s=seconds)


def test_a_deadline_that_has_passed_is_none_left_and_nan_is_refused() -> None:
    with deadline(-1):
        assert time_left() == 0
    with pytest.raises(ValueError, match="seconds"), deadline(math.nan):
        pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: Connection(keepalive_s=math.nan),
        lambda: Connection(keepalive_s=0),
        lambda: Connection(keepalive_timeout_s=math.inf),
        lambda: Hedging(after_s=math.nan),
        lambda: Hedging(after_s=math.inf),
        lambda: Hedging(max_extra=math.nan),
    ],
)
def test_other_times_and_shares_are_finite(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each names its own field
        make()
