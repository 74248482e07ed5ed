"""A slow score is asked again elsewhere, within a budget; against real gRPC servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from support.client_servers import Services, serving

from rewardloop_client import (
    AsyncRewardloopClient,
    FailedPrecondition,
    Feedback,
    FinishedCall,
    Hedging,
    RewardloopClient,
)
from rewardloop_client._hedge import Hedger


class Stuck:
    """What a servicer does with one call: wait until the caller hangs up."""

    def __init__(self) -> None:
        self.was_cancelled = threading.Event()

    def __call__(self, context: grpc.ServicerContext) -> None:
        if not context.add_callback(self.was_cancelled.set):
            self.was_cancelled.set()
        self.was_cancelled.wait(30)


@contextmanager
def two_replicas() -> Iterator[tuple[Services, Services, list[str]]]:
    first, second = Services("first"), Services("second")
    with serving(first) as one, serving(second) as two:
        yield first, second, [one, two]


def test_a_stuck_score_is_answered_by_another_replica_and_cancelled() -> None:
    seen: list[FinishedCall] = []
    hedging = Hedging(after_s=0.05, max_extra=1.0)
    with two_replicas() as (first, _, addresses):
        stuck = Stuck()
        first.failures = [stuck]
        with RewardloopClient(addresses, hedging=hedging, timeout_s=25, observer=seen.append) as client:
            assert client.score("p", ["ab"]).model_version.version == "second"
        assert stuck.was_cancelled.wait(20)
    assert [(call.attempts, call.hedges, call.code) for call in seen] == [(1, 1, "OK")]


async def test_the_asyncio_client_hedges_too() -> None:
    with two_replicas() as (first, _, addresses):
        stuck = Stuck()
        first.failures = [stuck]
        hedging = Hedging(after_s=0.05, max_extra=1.0)
        async with AsyncRewardloopClient(addresses, hedging=hedging, timeout_s=25) as client:
            assert (await client.score("p", ["ab"])).model_version.version == "second"
        assert stuck.was_cancelled.wait(20)


def _fails_late(context: grpc.ServicerContext) -> None:
    time.sleep(0.2)
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "late")


def test_when_both_fail_the_first_failure_is_raised_and_when_one_answers_it_counts() -> None:
    hedging = Hedging(after_s=0.05, max_extra=1.0)
    with two_replicas() as (first, second, addresses), RewardloopClient(addresses, hedging=hedging) as client:
        second.failures = [lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "at once")]
        first.failures = [_fails_late]
        with pytest.raises(FailedPrecondition, match="late"):
            client.score("p", ["a"])
        second.failures = [_fails_late]  # the turn is the second replica's now
        first.failures = [lambda context: time.sleep(0.5)]
        assert client.score("p", ["ab"]).model_version.version == "first"


async def test_the_asyncio_client_raises_the_first_failure_when_both_fail() -> None:
    hedging = Hedging(after_s=0.05, max_extra=1.0)
    with two_replicas() as (first, second, addresses):
        async with AsyncRewardloopClient(addresses, hedging=hedging) as client:
            second.failures = [lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "at once")]
            first.failures = [_fails_late]
            with pytest.raises(FailedPrecondition, match="late"):
                await client.score("p", ["a"])


def test_hedges_stay_within_their_share_of_the_calls() -> None:
    with two_replicas() as (first, second, addresses):
        with RewardloopClient(addresses, hedging=Hedging(after_s=0.001, max_extra=0.1)) as client:
            for services in (first, second):
                services.failures = [lambda context: time.sleep(0.02)] * 100
            for _ in range(60):
                client.score("p", ["a"])
        asked = len(first.calls) + len(second.calls)
    assert 60 < asked <= 66


def test_only_scores_are_hedged() -> None:
    with two_replicas() as (first, second, addresses):
        with RewardloopClient(addresses, hedging=Hedging(after_s=0.01, max_extra=1.0)) as client:
            for services in (first, second):
                services.failures = [lambda context: time.sleep(0.2)] * 3
            client.record(Feedback.tie(prompt="p", responses=["a", "b"]))
            client.score_batch([("p", ["a"])])
            client.generate("p")
        assert sorted(first.calls + second.calls) == ["Generate", "Record", "ScoreBatch"]


def test_the_delay_is_what_95_of_100_calls_took() -> None:
    hedger = Hedger(Hedging())
    for tenth in range(1, 50):
        assert hedger.begin() is None
        hedger.took(tenth / 10)
    hedger.took(5.0)
    assert hedger.begin() == pytest.approx(4.8)  # the 48th of 50


def test_the_budget_is_not_saved_up_beyond_a_few_calls() -> None:
    hedger = Hedger(Hedging(after_s=1.0, max_extra=0.05))
    assert not hedger.spend()
    for _ in range(20):
        hedger.begin()
    assert (hedger.spend(), hedger.spend()) == (True, False)
    for _ in range(10_000):
        hedger.begin()
    assert sum(hedger.spend() for _ in range(100)) == 10


@pytest.mark.parametrize("wrong", [lambda: Hedging(max_extra=0), lambda: Hedging(max_extra=1.5), lambda: Hedging(0.0)])
def test_settings_out_of_range_are_refused(wrong: Callable[[], Hedging]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        wrong()
