"""The benchmarks' ceiling is the fastest of several ways to run bare sessions, over all pairs."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def ceiling(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCH))
    import ceiling

    return ceiling


def test_runs_side_by_side_have_a_core_each_and_their_rates_add_up(ceiling: Any) -> None:
    cores = ceiling.cores()
    seen: dict[int, set[int]] = {}
    meet = threading.Barrier(len(cores))

    def run(place: int) -> Any:
        meet.wait(60)  # none ends before all have begun
        seen[place] = os.sched_getaffinity(0)
        return ceiling.Work(pairs=1, tokens=10 + place)

    runs = [lambda place=place: run(place) for place in range(len(cores))]
    rate = ceiling.side_by_side(runs, 0.0)
    assert sorted(map(tuple, seen.values())) == [(core,) for core in cores]
    assert os.sched_getaffinity(0) == set(cores)
    assert rate.pairs_per_s > 0
    assert rate.tokens_per_s >= 10 * rate.pairs_per_s
    with pytest.raises(ValueError, match="runs on"):
        ceiling.side_by_side([*runs, runs[0]], 0.0)


def test_the_fastest_way_is_taken_whether_side_by_side_or_not(
    ceiling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(ceiling, tmp_path)
    assert Counter(way.is_side_by_side for way in found.ways) == {True: 4, False: 4}
    for fastest in found.ways:
        rates = {way: ceiling.Rate(1.0, 2.0 if way == fastest else 1.0) for way in found.ways}
        monkeypatch.setattr(found, "measure", lambda seconds, way, rates=rates: rates[way])
        assert found.choose(1.0) == rates
        assert found.way == fastest


def test_a_pass_runs_every_pair_once_on_a_session_that_it_has_alone(ceiling: Any, tmp_path: Path) -> None:
    found = opened(ceiling, tmp_path)
    for way in found.ways:
        rate = found.measure(0.01, way)
        assert 0 < rate.pairs_per_s < rate.tokens_per_s
    session = found._whole
    for size in ceiling.BATCH_ROWS:
        ran: list[int] = []
        session.run = lambda feeds, ran=ran: ran.append(id(feeds))
        run = found._turns(session, size, 0.5)
        pairs = sum(run().pairs for _ in found._batches[size])
        assert pairs == 45
        assert len(set(ran)) == len(ran) == len(found._batches[size])


def opened(ceiling: Any, directory: Path) -> Any:
    """The ceiling of a small version over 45 pairs of unequal length."""
    from models import Pair

    store = ModelStore(directory / "models")
    manifest = publish_sum_version(store)
    pairs = [Pair("one two", " ".join(["three"] * (1 + n % 7))) for n in range(45)]
    return ceiling.Ceiling(store.fetch("reward", manifest.version), manifest, pairs)
