"""Prompts that the torch engine keeps change no score, belong to one version, and take no more memory than they may."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.families.build import save_reward
from support.families.shown import export_version
from support.families.table import FAMILIES
from support.reward_bases import exported, trained_delta
from support.torch_versions import DEVICE, graph_pool, load, publish_export, publish_torch_delta

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.torch_engine.opening import OpenTorch
from rewardloop_server.torch_engine.prefixes import LEAST_TOKENS, Prefixes
from rewardloop_server.torch_engine.runner import TorchRunner

TOLERANCE = 1e-5


class Counted:
    """Kept prompts, with what was looked up and how many bytes there were."""

    def __init__(self, most_bytes: int = 2**24) -> None:
        self.lookups: list[bool] = []
        self.sizes: list[int] = [0]
        self.prefixes = Prefixes(most_bytes, self.lookups.append, self.sizes.append)

    @property
    def hits(self) -> int:
        return sum(self.lookups)

    def pool(self, store: ModelStore) -> SessionPool:
        opens = functools.partial(OpenTorch, prefixes=self.prefixes)
        return SessionPool(store, DEVICE, ServerMetrics(), opens=opens)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def group(seed: int, prompt: int, sizes: list[int], vocabulary: int = 90, of: int = 0) -> list[Encoded]:
    """Responses of these sizes to the prompt ``of``."""
    start = np.random.default_rng(1000 + of).integers(4, vocabulary, prompt).tolist()
    chance = np.random.default_rng(seed)
    rows = [chance.integers(4, vocabulary, size).tolist() for size in sizes]
    return [Encoded([*start, *row], None, False, len(row), prompt) for row in rows]


def same(one: RewardModel, other: RewardModel, rows: list[Encoded]) -> None:
    np.testing.assert_allclose(one.run(rows)[0], other.run(rows)[0], atol=TOLERANCE)


def check(manifest: Manifest, store: ModelStore) -> None:
    counted = Counted()
    one, other = load(counted.pool(store), store, manifest), load(graph_pool(store), store, manifest)
    counted.lookups.clear()
    same(one, other, group(1, 40, [9, 0, 20, 3]))
    assert counted.lookups == [False]
    same(one, other, group(2, 40, [5, 0, 30, 1, 12]))
    same(one, other, group(3, 40, [17]))
    assert counted.lookups == [False, True, True]
    same(one, other, [*group(4, 40, [17, 0, 2]), *group(5, 33, [3, 8], of=1), *group(6, 40, [6])])
    same(one, other, [*group(7, 33, [4], of=1), *group(8, 40, [6])])
    assert counted.hits >= 3


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_responses_to_a_kept_prompt_have_the_logits_of_the_graph(kind: str, store: ModelStore) -> None:
    check(publish_export(store, exported(kind)), store)


@pytest.mark.parametrize("name", ["Mistral", "Qwen2 with a window", "Qwen3", "Gemma 3"])
def test_windows_that_reach_into_a_kept_prompt_are_those_of_the_graph(name: str, tmp_path: Path) -> None:
    (family,) = (each for each in FAMILIES if each.name == name)
    base = save_reward(family, tmp_path / "base")
    found = export_version(base, tmp_path / "store", "reward", "--heads", "1")
    assert not isinstance(found, str), found
    check(found[0], ModelStore(tmp_path / "store"))


def test_only_the_responses_to_a_kept_prompt_are_computed(store: ModelStore) -> None:
    counted = Counted()
    model = load(counted.pool(store), store, publish_export(store, exported("llama")))
    runner: Any = model._runner
    embedding = runner._networks[0].trunk.network.trunk.get_input_embeddings()
    lengths = list[int]()
    embedding.register_forward_hook(lambda module, given, output: lengths.append(output.shape[1]))
    model.run(group(1, 40, [10, 20]))
    model.run(group(2, 40, [5, 6, 7]))
    assert lengths == [70, 18]


def test_no_version_reads_what_another_one_kept_and_none_outlives_its_version(store: ModelStore) -> None:
    export, counted = exported("llama"), Counted()
    manifest = publish_export(store, export)
    delta = publish_torch_delta(store, manifest, export.encoder, trained_delta(export.model))
    pool, graphs = counted.pool(store), graph_pool(store)
    trunk, adapted = load(pool, store, manifest), load(pool, store, delta)
    counted.lookups.clear()
    rows = group(1, 40, [10, 20])
    same(trunk, load(graphs, store, manifest), rows)
    same(adapted, load(graphs, store, delta), rows)
    assert counted.hits == 0
    same(adapted, load(graphs, store, delta), group(2, 40, [8]))
    assert counted.hits == 1
    trunk.close()
    assert counted.sizes[-1] > 0
    adapted.close()
    assert counted.sizes[-1] == 0


def test_the_least_recently_used_prompts_go_first_and_the_bound_is_kept(store: ModelStore) -> None:
    manifest = publish_export(store, exported("llama"))
    # Two layers, two heads for keys, of 8 values in float32, keys and values: 256 bytes a token, and a state.
    one = 40 * 2 * 2 * 2 * 8 * 4 + 32 * 4
    counted = Counted(2 * one + 10)
    model = load(counted.pool(store), store, manifest)
    counted.lookups.clear()
    for prompt in (1, 2, 1, 3, 1, 2):
        model.run(group(prompt, 40, [5, 6], of=prompt))
    assert counted.lookups == [False, False, True, False, True, False]
    assert max(counted.sizes) == counted.sizes[-1] == 2 * one
    model.run(group(9, 100, [5, 6], of=9))  # larger than the bound
    assert counted.sizes[-1] == 2 * one


def test_short_prompts_and_encoders_keep_nothing(store: ModelStore) -> None:
    counted = Counted()
    model = load(counted.pool(store), store, publish_export(store, exported("llama")))
    encoder = load(counted.pool(store), store, publish_export(store, exported("bert")))
    counted.lookups.clear()
    before = counted.sizes[-1]
    for _ in range(2):
        model.run(group(1, LEAST_TOKENS - 1, [5, 6]))
        encoder.run(group(1, 40, [5, 6]))
    assert counted.lookups == []
    assert counted.sizes[-1] == before


def test_runs_of_kept_prompts_keep_the_limits_and_the_first_run_holds_the_first_row(store: ModelStore) -> None:
    counted = Counted()
    model = load(counted.pool(store), store, publish_export(store, exported("llama")))
    model.run(group(1, 40, [10, 20]))
    rows = [*group(2, 33, [3, 8], of=1), *group(3, 40, [20] * 6), *group(4, 33, [5], of=1)]
    plan = model.plan(rows, limit_tokens=100)
    assert sorted(i for run in plan for i in run.rows) == list(range(len(rows)))
    assert 0 in plan[0].rows
    assert all(run.length <= 100 for run in plan)
    assert [run.rows for run in plan if 2 in run.rows] == [(2, 3, 4)]
    dear = sum(run.cost_s for run in model.plan(group(3, 44, [20] * 6)))
    assert sum(run.cost_s for run in model.plan(group(3, 40, [20] * 6))) < dear


def test_threads_share_kept_prompts_without_mixing(store: ModelStore) -> None:
    manifest, counted = publish_export(store, exported("llama")), Counted(100_000)
    one, other = load(counted.pool(store), store, manifest), load(graph_pool(store), store, manifest)
    groups = [group(seed, 40, [5, 0, 11], of=seed % 5) for seed in range(30)]
    expected = [other.run(rows)[0] for rows in groups]
    wrong = list[float]()

    def run() -> None:
        wrong.extend(
            float(np.abs(one.run(rows)[0] - right).max()) for rows, right in zip(groups, expected, strict=True)
        )

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 3 * len(groups)
    assert max(wrong) <= TOLERANCE
    assert isinstance(one._runner, TorchRunner)
    one.close()
    assert counted.sizes[-1] == 0
