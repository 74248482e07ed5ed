"""The batcher never loses, doubles, reorders or mixes up rows, whatever waits together."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.batch import Batcher
from rewardloop_server.engine import Device, RewardModel, load_reward_model
from rewardloop_server.errors import DeadlinePassed, QueueFull
from rewardloop_server.metrics import ServerMetrics


def load(store: ModelStore, factor: float) -> RewardModel:
    manifest = publish_sum_version(store, factor=factor)
    return load_reward_model(manifest, store.fetch("reward", manifest.version), Device("cpu", 1, spin=False))


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[RewardModel]:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    return [load(store, 1.0), load(store, -3.0)]


def batcher(token_budget: int = 64, lane_tokens: int = 10**6) -> Batcher:
    lanes = {"production": lane_tokens, "trainer": lane_tokens}
    return Batcher(token_budget=token_budget, lane_tokens=lanes, trainer_max_wait_s=0.05, metrics=ServerMetrics())


row = st.lists(st.integers(1, 11), min_size=1, max_size=60).map(lambda ids: Encoded(ids, None, truncated=False))
group = st.tuples(st.lists(row, min_size=1, max_size=12), st.sampled_from(["production", "trainer"]), st.integers(0, 1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(group, min_size=1, max_size=20), token_budget=st.integers(1, 400))
def test_every_group_gets_exactly_its_own_scores(versions, groups, token_budget: int) -> None:
    async def score_all() -> list[np.ndarray]:
        subject = batcher(token_budget)
        loop = asyncio.create_task(subject.run())
        scored = await asyncio.gather(*(subject.score(versions[v], rows, lane, None) for rows, lane, v in groups))
        loop.cancel()
        subject.close()
        return [s.logits for s in scored]

    for (rows, _, version), logits in zip(groups, asyncio.run(score_all()), strict=True):
        factor = (1.0, -3.0)[version]
        sums = np.array([sum(r.ids) for r in rows], dtype=np.float32)
        np.testing.assert_allclose(logits, np.stack([factor * sums, 2 * factor * sums], axis=1), rtol=1e-6)


async def test_full_lane_refuses_and_says_when_to_retry(versions) -> None:
    subject = batcher(lane_tokens=100)
    rows = [Encoded([1] * 60, None, truncated=False)]
    waiting = asyncio.create_task(subject.score(versions[0], rows, "production", None))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as refusal:
        await subject.score(versions[0], rows, "production", None)
    assert refusal.value.retry_after_ms
    loop = asyncio.create_task(subject.run())
    assert (await waiting).logits.shape == (1, 2)
    loop.cancel()


async def test_group_larger_than_the_queue_is_taken_when_the_queue_is_empty(versions) -> None:
    subject = batcher(token_budget=16, lane_tokens=10)
    loop = asyncio.create_task(subject.run())
    scored = await subject.score(versions[0], [Encoded([2] * 8, None, truncated=False)] * 9, "production", None)
    assert scored.logits[:, 0].tolist() == [16.0] * 9
    loop.cancel()


async def test_passed_deadline_is_dropped_unrun(versions) -> None:
    subject = batcher()
    now = asyncio.get_running_loop().time()
    late = asyncio.create_task(subject.score(versions[0], [Encoded([1], None, truncated=False)], "production", now - 1))
    await asyncio.sleep(0)
    loop = asyncio.create_task(subject.run())
    with pytest.raises(DeadlinePassed):
        await late
    loop.cancel()


async def test_caller_that_went_away_is_skipped_and_its_room_freed(versions) -> None:
    subject = batcher(lane_tokens=100)
    rows = [Encoded([1] * 90, None, truncated=False)]
    gone = asyncio.create_task(subject.score(versions[0], rows, "production", None))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    loop = asyncio.create_task(subject.run())
    await asyncio.sleep(0.05)
    assert (await subject.score(versions[0], rows, "production", None)).logits[0, 0] == 90
    loop.cancel()


async def test_waiting_trainer_is_served_while_production_keeps_coming(versions) -> None:
    subject = batcher(token_budget=8)
    loop = asyncio.create_task(subject.run())
    rows = [Encoded([1] * 8, None, truncated=False)]
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
    loop.cancel()
