"""The batcher never loses, doubles, reorders or mixes up rows, whatever waits together, and keeps turns fair."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.graph_runners import graph_runner
from support.reward_graphs import WORDS, publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import DeadlinePassed, EngineStuck, InternalError, NotLoadable, QueueFull
from rewardloop_server.calls.vocabulary import FAILED_RUN_OUTCOMES, QUEUE_LANES
from rewardloop_server.device.choose import Device
from rewardloop_server.guard.watch import RunBounds
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.observe.thread_load import ThreadLoad
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.engine import EngineBroken, RewardModel, Sessions
from rewardloop_server.scoring.lane import Group, Lane
from rewardloop_server.scoring.offer import Offer, Places, Slot

FATAL, NO_NUMBER = 9, 10


def load(store: ModelStore, factor: float, cost: int = 0, **faults: str) -> RewardModel:
    manifest = publish_sum_version(store, factor=factor, cost=cost, **faults)
    pool = SessionPool(store, Device("cpu", 2, spin=False, streams=2), ServerMetrics())
    return pool.load(manifest, store.fetch("reward", manifest.version))


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[RewardModel]:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    return [load(store, 1.0), load(store, -3.0)]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """A run takes tens of milliseconds."""
    return load(ModelStore(tmp_path_factory.mktemp("slow")), 1.0, cost=800)


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """A run takes so long that what the test does meanwhile happens while it is on the engine."""
    return load(ModelStore(tmp_path_factory.mktemp("slower")), 1.0, cost=2500)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """A run with the id `FATAL` fails, and a row with the id `NO_NUMBER` gets logits that are not numbers."""
    store = ModelStore(tmp_path_factory.mktemp("fragile"))
    return load(store, 1.0, fails_on=WORDS[FATAL - 4], nan_on=WORDS[NO_NUMBER - 4])


async def until_taken(metrics: ServerMetrics, lane: str) -> None:
    """Until the engine has all that waited in the lane."""
    while metrics.registry.get_sample_value("rewardloop_queue_tokens", {"lane": lane}):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def batcher(
    token_budget: int = 64,
    metrics: ServerMetrics | None = None,
    streams: int = 1,
    bounds: RunBounds | None = None,
    **limits: float,
) -> Batcher:
    lanes = {lane: LaneLimits(**({"max_tokens": 10**6} | limits)) for lane in QUEUE_LANES}
    metrics = metrics or ServerMetrics()
    return Batcher(
        token_budget=token_budget,
        lanes=lanes,
        trainer_max_wait_s=0.05,
        metrics=metrics,
        places=Places(streams=streams),
        bounds=bounds or RunBounds(),
    )


@asynccontextmanager
async def running(subject: Batcher) -> AsyncIterator[Batcher]:
    loop = asyncio.create_task(subject.run())
    try:
        yield subject
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


def encoded(*ids: int) -> Encoded:
    return Encoded(list(ids), None, truncated=False)


def failed_runs(metrics: ServerMetrics) -> dict[str, float]:
    sample = metrics.registry.get_sample_value
    return {o: sample("rewardloop_failed_runs_total", {"outcome": o}) or 0.0 for o in FAILED_RUN_OUTCOMES}


row = st.lists(st.integers(1, 11), min_size=1, max_size=60).map(lambda ids: encoded(*ids))
group = st.tuples(
    st.lists(row, min_size=1, max_size=12), st.sampled_from(QUEUE_LANES), st.integers(0, 1), st.sampled_from("abc")
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(group, min_size=1, max_size=20),
    token_budget=st.integers(1, 400),
    run_s=st.floats(1e-5, 0.1),
    streams=st.integers(1, 3),
)
def test_every_group_gets_exactly_its_own_scores(
    versions, groups, token_budget: int, run_s: float, streams: int
) -> None:
    metrics = ServerMetrics()

    async def score_all() -> list[np.ndarray]:
        async with running(batcher(token_budget, metrics, streams, run_s=run_s)) as subject:
            scoring = (subject.score(versions[v], rows, lane, None, caller) for rows, lane, v, caller in groups)
            return [s.logits for s in await asyncio.gather(*scoring)]

    for (rows, _, version, _), logits in zip(groups, asyncio.run(score_all()), strict=True):
        factor = (1.0, -3.0)[version]
        sums = np.array([sum(r.ids) for r in rows], dtype=np.float32)
        np.testing.assert_allclose(logits, np.stack([factor * sums, 2 * factor * sums], axis=1), rtol=1e-6)
    sample = metrics.registry.get_sample_value
    assert sample("rewardloop_batch_rows_sum") == sum(len(rows) for rows, *_ in groups)
    assert all(sample("rewardloop_queue_tokens", {"lane": lane}) == 0 for lane in QUEUE_LANES)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), groups=st.lists(group, min_size=2, max_size=12), streams=st.integers(1, 2))
def test_callers_that_go_away_at_any_time_take_nothing_from_others(slow, data, groups, streams: int) -> None:
    leaving = data.draw(st.sets(st.integers(0, len(groups) - 1)))
    turns = data.draw(st.integers(0, 5))

    async def score_all() -> list[object]:
        async with running(batcher(streams=streams)) as subject:
            tasks = [asyncio.create_task(subject.score(slow, rows, lane, None, c)) for rows, lane, _, c in groups]
            for _ in range(turns):
                await asyncio.sleep(0.002)
            for index in leaving:
                tasks[index].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    for index, ((rows, *_), outcome) in enumerate(zip(groups, asyncio.run(score_all()), strict=True)):
        if isinstance(outcome, asyncio.CancelledError):
            assert index in leaving
        else:
            assert outcome.logits[:, 0].tolist() == [sum(r.ids) for r in rows]


async def test_full_lane_refuses_before_any_work_and_says_when_to_retry(versions) -> None:
    subject = batcher(max_tokens=100)
    waiting = asyncio.create_task(subject.score(versions[0], [encoded(*[1] * 60)], "production", None))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as refusal, subject.reserved("production", 60, None, ""):
        pass
    assert refusal.value.retry_after_ms
    with subject.reserved("production", 15, None, ""), pytest.raises(QueueFull):  # noqa: SIM117
        with subject.reserved("production", 1, None, ""):
            pass
    with subject.reserved("production", 30, None, "another"), pytest.raises(QueueFull):  # noqa: SIM117
        with subject.reserved("production", 8, None, "a third"):
            pass
    with subject.reserved("production", 60, None, "", is_bounded=False):
        pass
    async with running(subject):
        assert (await waiting).logits.shape == (1, 2)
        with subject.reserved("production", 1000, None, ""):  # more than the bound, but nothing waits
            pass


async def test_lane_is_bounded_in_time_at_the_pace_of_its_runs(slow) -> None:
    async with running(batcher(token_budget=8, max_s=1e-3)) as subject:
        rows = [encoded(*[1] * 8)]
        await subject.score(slow, rows, "production", None)
        waiting = [asyncio.create_task(subject.score(slow, rows, "production", None)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as refusal, subject.reserved("production", 8, None, ""):
            pass
        assert refusal.value.retry_after_ms >= 20
        await asyncio.gather(*waiting)


async def test_group_larger_than_the_budget_is_run_in_parts(versions) -> None:
    async with running(batcher(token_budget=16)) as subject:
        scored = await subject.score(versions[0], [encoded(*[2] * 8)] * 9, "production", None)
    assert scored.logits[:, 0].tolist() == [16.0] * 9
    assert 1 <= scored.run_rows <= 2
    assert scored.run_tokens == 8 * scored.run_rows


async def test_passed_deadline_is_dropped_unrun(versions) -> None:
    metrics = ServerMetrics()
    subject = batcher(metrics=metrics)
    now = asyncio.get_running_loop().time()
    late = asyncio.create_task(subject.score(versions[0], [encoded(1)], "production", now - 1))
    await asyncio.sleep(0)
    async with running(subject):
        with pytest.raises(DeadlinePassed):
            await late
    assert metrics.registry.get_sample_value("rewardloop_batch_rows_count") == 0


async def test_deadline_that_the_backlog_makes_impossible_is_refused_at_once(slow) -> None:
    async with running(batcher(token_budget=8)) as subject:
        rows = [encoded(*[1] * 8)]
        await subject.score(slow, rows, "production", None, "a")
        due = asyncio.get_running_loop().time() + 0.5
        waiting = [asyncio.create_task(subject.score(slow, rows, "production", due, "a")) for _ in range(500)]
        await asyncio.sleep(0)
        with pytest.raises(DeadlinePassed, match="ahead"), subject.reserved("production", 8, due + 0.1, "a"):
            pass
        with subject.reserved("production", 8, due + 0.1, "b"):  # its turn comes before their backlog
            pass
        for task in waiting:
            task.cancel()


async def test_caller_that_went_away_is_not_run_though_laid_out(slower) -> None:
    metrics = ServerMetrics()
    async with running(batcher(token_budget=8, metrics=metrics)) as subject:
        rows = [encoded(*[1] * 8)]
        first = asyncio.create_task(subject.score(slower, rows, "production", None))
        await asyncio.sleep(0)
        await until_taken(metrics, "production")
        gone = asyncio.create_task(subject.score(slower, rows * 5, "production", None))
        for _ in range(5):
            await asyncio.sleep(0)
        assert subject._offered is not None
        gone.cancel()
        await first
        last = await subject.score(slower, rows, "production", None)
    assert last.logits[0, 0] == 8
    assert metrics.registry.get_sample_value("rewardloop_batch_rows_sum") == 2


async def test_a_second_stream_takes_what_comes_while_the_first_runs(slower) -> None:
    metrics = ServerMetrics()
    async with running(batcher(token_budget=8, metrics=metrics, streams=2)) as subject:
        rows = [encoded(*[1] * 8)]
        tasks = []
        for _ in range(2):
            tasks.append(asyncio.create_task(subject.score(slower, rows, "production", None)))
            await asyncio.sleep(0)
            await until_taken(metrics, "production")
        assert not tasks[0].done()
        assert [(await task).logits[0, 0] for task in tasks] == [8, 8]


def offer(model: RewardModel, *, alone: bool) -> Offer:
    rows = [encoded(1)]
    (run,) = model.plan(rows)
    lane = Lane("production", max_tokens=8, max_s=1.0, metrics=ServerMetrics())
    return Offer(lane, model, [], run, model.lay_out(rows, run), may_grow=False, pushes=0, alone=alone)


def test_a_run_has_the_whole_device_when_nothing_else_runs_or_waits(versions) -> None:
    slot = Slot(Places(streams=3))
    runs = []
    for alone in (True, True, False):
        slot.put(offer(versions[0], alone=alone))
        taken = slot.take()
        assert taken is not None
        runs.append(taken)
    assert [each.alone for each in runs] == [True, False, False]
    for each in runs:
        slot.done(each)
    slot.put(offer(versions[0], alone=True))
    taken = slot.take()
    assert taken is not None
    assert taken.alone


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(0, 11), max_size=40))
def test_a_run_goes_to_the_place_that_has_the_fewest(versions, gpus: int, streams: int, ends: list[int]) -> None:
    template = offer(versions[0], alone=True)
    places = Places(tuple(f"cuda:{i}" for i in range(gpus)), streams)
    slot = Slot(places)
    running: list[Offer] = []
    for end in ends:
        if running and (end % 2 or len(running) == places.most_runs):
            slot.done(running.pop(end % len(running)))
            continue
        runs = Counter(each.place for each in running)
        slot.put(replace(template))
        taken = slot.take()
        assert taken is not None
        assert runs[taken.place] == min(runs[place] for place in range(gpus))
        assert runs[taken.place] < streams
        assert taken.alone == (runs[taken.place] == 0)
        running.append(taken)


@pytest.mark.parametrize(("gpus", "streams", "most"), [(1, 2, 1), (1, 4, 1), (2, 1, 1), (4, 1, 3), (4, 2, 3)])
def test_long_runs_leave_a_place_or_a_stream_to_the_short_ones_of_others(versions, gpus, streams, most) -> None:
    places = Places(tuple(f"cuda:{i}" for i in range(gpus)), streams)
    slot = Slot(places)
    running: list[Offer] = []
    for _ in range(most):
        long = replace(offer(versions[0], alone=True), is_long=True, lets_by=True)
        assert not long.waits_for(running, places)
        slot.put(long)
        taken = slot.take()
        assert taken is not None
        running.append(taken)
    assert len({each.place for each in running}) == most
    assert long.waits_for(running, places)
    assert most < places.most_runs
    slot.put(offer(versions[0], alone=False))
    short = slot.take()
    assert short is not None
    assert gpus == 1 or short.place not in {each.place for each in running}


@pytest.mark.parametrize(
    ("gpus", "streams", "alone", "tokens"), [(1, 1, True, 5), (1, 2, False, 10), (4, 2, False, 40)]
)
async def test_a_lane_counts_on_all_places_to_work_it_off(versions, gpus, streams, alone, tokens) -> None:
    subject = batcher()
    subject._places = Places(tuple(f"cuda:{i}" for i in range(gpus)), streams)
    ran = offer(versions[0], alone=alone)
    outcome = asyncio.get_running_loop().create_future()
    ran.rows = [(Group(versions[0], [encoded(*[1] * 10)], "", None, outcome), 0)]
    subject._ends[ran] = 0.0
    subject.ran(ran, np.zeros((1, 2), dtype=np.float32), 2.0)
    assert ran.lane.tokens_in(1.0) == tokens


# A row of 20 tokens takes less than a run should if it is alone, and more beside another.
@pytest.mark.parametrize(("other", "tokens"), [("short", 60), ("short", 20), ("long", 60)])
async def test_long_runs_go_one_at_a_time_while_another_caller_has_short_ones(
    slower, monkeypatch, other, tokens
) -> None:
    monkeypatch.setattr(slower, "cost", CostModel(1e-4, 1e-3, 0.0))
    monkeypatch.setattr(ThreadLoad, "share", lambda self: 0.0)
    seen: list[tuple[str, Offer, int]] = []  # callers, their runs, and the long runs in flight beside each

    class Spy(Slot):
        def take(self) -> Offer | None:
            taken = super().take()
            if taken is not None:
                seen.append((taken.rows[0][0].caller, taken, sum(each.is_long for each in self._running) - 1))
            return taken

    subject = batcher(streams=2, run_s=0.03)
    subject._slot = Spy(subject._places)
    async with running(subject):
        await subject.score(slower, [encoded(1)], "production", None, other)
        backlog = [
            asyncio.create_task(subject.score(slower, [encoded(*[1] * tokens)], "production", None, "long"))
            for _ in range(6)
        ]
        for _ in range(3):
            await subject.score(slower, [encoded(1)], "production", None, other)
        await asyncio.gather(*backlog)
    long = [(offer, beside) for caller, offer, beside in seen if offer.is_long]
    assert len(long) == 6
    if other == "short":
        assert all(offer.lets_by and offer.alone and not beside for offer, beside in long)
    else:
        assert not any(offer.lets_by for offer, _ in long)
        assert any(beside for _, beside in long)
    assert len(seen) == 10


@pytest.mark.parametrize("lane", ["production", "trainer"])
async def test_short_runs_wait_for_no_long_one_of_others(versions, monkeypatch, lane: str) -> None:
    monkeypatch.setattr(versions[0], "cost", CostModel(1e-4, 1e-3, 0.0))
    began, released = threading.Event(), threading.Event()
    execute = RewardModel.execute

    def held(self: RewardModel, feeds: Any, **how: Any) -> Any:
        if feeds.real_tokens >= 60:
            began.set()
            released.wait(20)
        return execute(self, feeds, **how)

    monkeypatch.setattr(RewardModel, "execute", held)
    async with running(batcher(streams=2, run_s=0.03)) as subject:
        await subject.score(versions[0], [encoded(1)], "production", None, "short")
        backlog = [
            asyncio.create_task(subject.score(versions[0], [encoded(*[1] * 60)], lane, None, f"long {i % 2}"))
            for i in range(6)
        ]
        try:
            await asyncio.to_thread(began.wait, 10)
            async with asyncio.timeout(5):
                for _ in range(5):
                    await subject.score(versions[0], [encoded(1)], "production", None, "short")
        finally:
            released.set()
        await asyncio.gather(*backlog)


@pytest.mark.parametrize(("busy", "alone"), [(0.0, True), (0.9, False)])
async def test_a_run_leaves_a_core_to_an_event_loop_that_needs_one(versions, monkeypatch, busy, alone) -> None:
    seen: list[bool] = []
    execute = RewardModel.execute

    def spy(self: RewardModel, feeds: Any, **how: Any) -> Any:
        seen.append(how["alone"])
        return execute(self, feeds, **how)

    monkeypatch.setattr(RewardModel, "execute", spy)
    monkeypatch.setattr(ThreadLoad, "share", lambda self: busy)
    async with running(batcher(streams=2)) as subject:
        await subject.score(versions[0], [encoded(1, 2)], "production", None)
    assert seen == [alone]


async def test_production_goes_before_a_trainer_run_that_is_laid_out(slower) -> None:
    metrics = ServerMetrics()
    order: list[str] = []

    async def score(subject: Batcher, lane: str, name: str) -> None:
        await subject.score(slower, [encoded(*[1] * 8)], lane, None, name)
        order.append(name)

    async with running(batcher(token_budget=8, metrics=metrics)) as subject, asyncio.TaskGroup() as tasks:
        tasks.create_task(score(subject, "trainer", "first"))
        await asyncio.sleep(0)
        await until_taken(metrics, "trainer")
        tasks.create_task(score(subject, "trainer", "second"))
        tasks.create_task(score(subject, "shadow", "shadow"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert subject._offered is not None
        assert subject._offered.lane.name == "trainer"
        tasks.create_task(score(subject, "production", "production"))
    assert order == ["first", "production", "second", "shadow"]


async def test_waiting_trainer_is_served_while_production_keeps_coming(versions) -> None:
    async with running(batcher(token_budget=8)) as subject:
        rows = [encoded(*[1] * 8)]
        stop = asyncio.Event()

        async def production() -> None:
            while not stop.is_set():
                await asyncio.gather(*(subject.score(versions[0], rows, "production", None) for _ in range(20)))

        flood = [asyncio.create_task(production()) for _ in range(3)]
        await asyncio.sleep(0.02)
        async with asyncio.timeout(20):
            scored = await subject.score(versions[0], rows, "trainer", None)
        assert scored.logits[0, 0] == 8
        stop.set()
        await asyncio.gather(*flood)


async def test_small_request_waits_for_no_more_than_two_runs_of_anothers_backlog(slow) -> None:
    metrics = ServerMetrics()
    async with running(batcher(token_budget=8, metrics=metrics)) as subject:
        rows = [encoded(*[1] * 8)]
        backlog = [asyncio.create_task(subject.score(slow, rows * 5, "production", None, "bulk")) for _ in range(20)]
        await asyncio.sleep(0.1)
        ran = metrics.registry.get_sample_value("rewardloop_batch_rows_count")
        await subject.score(slow, rows, "production", None, "small")
        # The run in flight, the one laid out, its own.
        assert metrics.registry.get_sample_value("rewardloop_batch_rows_count") - ran <= 3
        for task in backlog:
            task.cancel()


async def test_full_shadow_lane_drops_and_counts(versions) -> None:
    metrics = ServerMetrics()
    subject = batcher(metrics=metrics, max_tokens=10)
    first = asyncio.create_task(subject.score_shadow(versions[0], [encoded(*[1] * 8)]))
    await asyncio.sleep(0)
    assert await subject.score_shadow(versions[0], [encoded(*[1] * 8)]) is None
    assert metrics.registry.get_sample_value("rewardloop_shadow_dropped_total", {"model": "reward"}) == 1
    async with running(subject):
        assert (await first).logits[0, 0] == 8


async def test_group_that_cannot_be_laid_out_fails_alone(versions) -> None:
    async with running(batcher()) as subject:
        broken = encoded(1, 2)
        broken.ids.append("x")  # type: ignore[arg-type]
        rows = [[encoded(3)], [broken], [encoded(4), encoded(5)]]
        outcomes = await asyncio.gather(
            *(subject.score(versions[0], each, "production", None) for each in rows), return_exceptions=True
        )
    assert [o.logits[:, 0].tolist() for o in (outcomes[0], outcomes[2])] == [[3.0], [4.0, 5.0]]
    assert isinstance(outcomes[1], NotLoadable)


sound_row = st.lists(st.integers(1, FATAL - 1), min_size=1, max_size=12)
sound_group = st.tuples(
    st.lists(sound_row, min_size=1, max_size=4),
    st.sampled_from(QUEUE_LANES),
    st.sampled_from("abc"),
    st.sampled_from((None, None, None, FATAL, NO_NUMBER)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(sound_group, min_size=1, max_size=40), token_budget=st.integers(1, 2000), streams=st.integers(1, 2)
)
def test_requests_on_which_the_model_fails_fail_alone(fragile, groups, token_budget: int, streams: int) -> None:
    metrics = ServerMetrics()
    asked = [
        [encoded(*ids, *([fault] if fault and i == len(rows) - 1 else [])) for i, ids in enumerate(rows)]
        for rows, _, _, fault in groups
    ]

    async def score_all() -> list[object]:
        async with running(batcher(token_budget, metrics, streams)) as subject:
            scoring = (
                subject.score(fragile, rows, lane, None, caller)
                for rows, (_, lane, caller, _) in zip(asked, groups, strict=True)
            )
            return await asyncio.gather(*scoring, return_exceptions=True)

    for rows, (*_, fault), outcome in zip(asked, groups, asyncio.run(score_all()), strict=True):
        if fault is None:
            assert outcome.logits[:, 0].tolist() == [sum(row.ids) for row in rows]
        else:
            assert isinstance(outcome, NotLoadable if fault == FATAL else InternalError)
    faulty = sum(fault is not None for *_, fault in groups)
    outcomes = failed_runs(metrics)
    assert outcomes["isolated"] == faulty
    assert outcomes["split"] <= 2 * faulty
    assert outcomes["broken"] == 0
    assert all(
        metrics.registry.get_sample_value("rewardloop_queue_tokens", {"lane": lane}) == 0 for lane in QUEUE_LANES
    )


async def test_one_bad_request_of_many_costs_few_more_runs(fragile) -> None:
    metrics = ServerMetrics()
    subject = batcher(token_budget=10**6, metrics=metrics)
    rows = [encoded(FATAL if i == 37 else 1) for i in range(100)]
    scoring = [asyncio.create_task(subject.score(fragile, [row], "production", None)) for row in rows]
    await asyncio.sleep(0)
    async with running(subject):
        outcomes = await asyncio.gather(*scoring, return_exceptions=True)
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [37]
    # The run of 100, its part of 10, and the request itself failed; nine parts and nine requests ran.
    assert failed_runs(metrics) == {"split": 2, "smaller": 0, "isolated": 1, "broken": 0, "away": 0}
    assert metrics.registry.get_sample_value("rewardloop_batch_rows_count") == 18


async def test_version_that_no_longer_runs_is_not_tried_again(tmp_path) -> None:
    metrics = ServerMetrics()
    model = load(ModelStore(tmp_path), 1.0)
    subject = batcher(token_budget=10**6, metrics=metrics)
    scoring = [asyncio.create_task(subject.score(model, [encoded(1)], "production", None)) for _ in range(100)]
    await asyncio.sleep(0)
    model.close()
    async with running(subject):
        outcomes = await asyncio.gather(*scoring, return_exceptions=True)
    assert all(isinstance(outcome, NotLoadable) for outcome in outcomes)
    assert failed_runs(metrics) == {"split": 0, "smaller": 0, "isolated": 0, "broken": 1, "away": 0}


class Failing:
    """Stands in for a version's session, and fails as long as `says` is not empty and a run has too many tokens."""

    def __init__(self, model: RewardModel, says: str, most_tokens: int = 0) -> None:
        self.says, self.most_tokens, self.sizes = says, most_tokens, list[int]()
        self._session = graph_runner(model)._sessions[0].alone

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray], options: object) -> list[np.ndarray]:
        self.sizes.append(inputs["input_ids"].size)
        if self.says and self.sizes[-1] > self.most_tokens:
            raise RuntimeError(self.says)
        return self._session.run(outputs, inputs, options)


def failing(tmp_path: Path, says: str, most_tokens: int = 0) -> tuple[RewardModel, Failing]:
    model = load(ModelStore(tmp_path), 1.0)
    session = Failing(model, says, most_tokens)
    graph_runner(model)._sessions = (Sessions("cpu", session, session),)
    return model, session


@pytest.mark.parametrize("says", ["Failed to allocate memory for requested buffer of size 8", "CUDA out of memory."])
async def test_runs_get_smaller_where_memory_does_not_suffice_and_grow_again(tmp_path, says) -> None:
    metrics = ServerMetrics()
    model, session = failing(tmp_path, says, most_tokens=20)
    subject = batcher(token_budget=64, metrics=metrics)
    scoring = [asyncio.create_task(subject.score(model, [encoded(1, 2)] * 32, "production", None)) for _ in range(20)]
    await asyncio.sleep(0)
    async with running(subject):
        outcomes = await asyncio.gather(*scoring)
        assert all((outcome.logits[:, 0] == 3).all() for outcome in outcomes)
        assert failed_runs(metrics) == {"split": 0, "smaller": ANY, "isolated": 0, "broken": 0, "away": 0}
        assert 2 <= failed_runs(metrics)["smaller"] <= 4  # runs of 64 and of 32 tokens, one each that was laid out
        session.says = ""
        for _ in range(120):
            await subject.score(model, [encoded(1, 2)] * 32, "production", None)
        assert max(session.sizes[-3:]) > 20
        assert not subject.is_stuck


async def test_a_row_for_which_memory_does_not_suffice_fails_alone(tmp_path) -> None:
    model, _ = failing(tmp_path, "std::bad_alloc", most_tokens=20)
    rows = [[encoded(*[1] * 30)], [encoded(1)], [encoded(2)]]
    async with running(batcher()) as subject:
        outcomes = await asyncio.gather(
            *(subject.score(model, each, "production", None) for each in rows), return_exceptions=True
        )
    assert isinstance(outcomes[0], NotLoadable)
    assert [outcome.logits[0, 0] for outcome in outcomes[1:]] == [1, 2]


async def test_a_version_that_runs_nothing_any_more_turns_callers_away_and_ends_the_engine(tmp_path) -> None:
    metrics = ServerMetrics()
    model, _ = failing(tmp_path, "CUDA error 700: an illegal memory access was encountered", most_tokens=-1)
    subject = batcher(metrics=metrics, bounds=RunBounds(broken_s=1.5))
    engine = asyncio.create_task(subject.run())
    first = asyncio.create_task(subject.score(model, [encoded(1)], "production", None))
    while not subject.is_stuck:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    with pytest.raises(EngineStuck):
        await subject.score(model, [encoded(2)], "production", None)
    with pytest.raises(EngineStuck):
        await first
    with pytest.raises(EngineBroken, match="version 1 runs nothing any more on cpu"):
        await engine
    assert failed_runs(metrics)["broken"] == 1


async def test_a_version_that_failed_on_everything_for_a_while_answers_again(tmp_path) -> None:
    model, session = failing(tmp_path, "CUBLAS_STATUS_ALLOC_FAILED", most_tokens=-1)
    async with running(batcher(bounds=RunBounds(broken_s=30.0))) as subject:
        first = asyncio.create_task(subject.score(model, [encoded(1), encoded(4)], "production", None))
        while not subject.is_stuck:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        session.says = ""
        assert (await first).logits[:, 0].tolist() == [1, 4]
        assert not subject.is_stuck
        assert (await subject.score(model, [encoded(2)], "production", None)).logits[0, 0] == 2


async def test_innocent_request_is_scored_though_the_guilty_callers_went_away(fragile, slower) -> None:
    metrics = ServerMetrics()
    async with running(batcher(token_budget=10**6, metrics=metrics)) as subject:
        first = asyncio.create_task(subject.score(slower, [encoded(1)], "production", None))
        await asyncio.sleep(0)
        await until_taken(metrics, "production")
        guilty = [asyncio.create_task(subject.score(fragile, [encoded(FATAL)], "production", None)) for _ in range(3)]
        innocent = asyncio.create_task(subject.score(fragile, [encoded(5)], "production", None))
        await asyncio.sleep(0)
        await first
        while not failed_runs(metrics)["split"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for task in guilty:
            task.cancel()
        assert (await innocent).logits[0, 0] == 5
