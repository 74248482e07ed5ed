"""The cache of scores: bounded, per version, gone with its version."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.cache import ScoreCache
from rewardloop_server.scoring.engine import RewardModel


def load(store: ModelStore, factor: float) -> RewardModel:
    manifest = publish_sum_version(store, factor=factor)
    pool = SessionPool(store, Device("cpu", 1, spin=False), ServerMetrics())
    return pool.load(manifest, store.fetch("reward", manifest.version))


@pytest.fixture
def store(tmp_path) -> ModelStore:
    return ModelStore(tmp_path)


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics()


@pytest.fixture
def cache(metrics: ServerMetrics) -> ScoreCache:
    return ScoreCache(max_mib=1, lanes=["trainer"], metrics=metrics)


def rows(*ids: list[int], segments: list[int] | None = None) -> list[Encoded]:
    return [Encoded(each, segments, truncated=False) for each in ids]


def remember(cache: ScoreCache, model: RewardModel, asked: list[Encoded], *logits: float) -> None:
    keys, _ = cache.look_up(model, asked, "trainer")
    cache.keep(model, keys, np.array([[x, x] for x in logits], dtype=np.float32))


def known(cache: ScoreCache, model: RewardModel, asked: list[Encoded]) -> list[float | None]:
    return [None if row is None else float(row[0]) for row in cache.look_up(model, asked, "trainer")[1]]


def test_it_knows_what_was_kept_by_ids_segments_and_version(cache: ScoreCache, store: ModelStore) -> None:
    one, other = load(store, 1.0), load(store, 2.0)
    remember(cache, one, rows([1, 2], [3]), 0.5, 0.25)
    assert known(cache, one, rows([3], [2, 1], [1, 2])) == [0.25, None, 0.5]
    assert known(cache, one, rows([1, 2], segments=[0, 1])) == [None]
    assert known(cache, other, rows([1, 2])) == [None]


def test_least_recently_used_goes_first_and_memory_is_bounded(cache: ScoreCache, store: ModelStore) -> None:
    model = load(store, 1.0)
    remember(cache, model, rows([0]), 7.0)
    for first in range(1, 20_000, 1000):
        remember(cache, model, rows(*([first + i] for i in range(1000))), *[1.0] * 1000)
        if first < 10_000:
            assert known(cache, model, rows([0])) == [7.0]
    assert known(cache, model, rows([0], [1], [20_000])) == [None, None, 1.0]
    assert cache.entries(model) == 2**20 // 400


def test_entries_go_with_their_version(cache: ScoreCache, store: ModelStore) -> None:
    model = load(store, 1.0)
    remember(cache, model, rows([1]), 1.0)
    model.close()
    del model
    gc.collect()
    assert not list(cache._versions)


def test_lookups_are_counted_and_other_lanes_are_not_served(
    cache: ScoreCache, metrics: ServerMetrics, store: ModelStore
) -> None:
    model = load(store, 1.0)
    remember(cache, model, rows([1], [2]), 1.0, 2.0)
    known(cache, model, rows([1], [2], [3]))
    count = {
        outcome: metrics.registry.get_sample_value(
            "rewardloop_cache_lookups_total", {"lane": "trainer", "outcome": outcome}
        )
        for outcome in ("hit", "miss")
    }
    assert count == {"hit": 2, "miss": 3}
    assert cache.serves("trainer")
    assert not cache.serves("production")
    assert not ScoreCache(max_mib=0, lanes=["trainer"], metrics=metrics).serves("trainer")
