"""Versions over one graph share its session, and each gives its own score, never silently that of the defaults."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from support.adapter_graphs import HEADS, WIDTH, lora, publish_decoder, publish_delta, write_decoder
from support.reward_graphs import publish_sum_version, word_tokenizer

from rewardloop.formats.store import CorruptVersion, Manifest, ModelStore, Trunk
from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import Floats, RewardModel

ROWS = [Encoded([1, 4, 5, 2, 6, 7, 2], None, False, 3, 4), Encoded([1, 4, 5, 2, 8, 2], None, False, 2, 4)]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture(params=[False, True], ids=["active", "bound"])
def pool(request: pytest.FixtureRequest, store: ModelStore) -> SessionPool:
    return SessionPool(store, Device("cpu", 1, spin=False, binds_adapters=request.param), ServerMetrics())


def load(pool: SessionPool, store: ModelStore, manifest: Manifest) -> RewardModel:
    return pool.load(manifest, store.fetch("reward", manifest.version))


def logits(model: RewardModel) -> Floats:
    return model.run(ROWS)[0]


def folded(tmp_path: Path, parameters: dict[str, np.ndarray]) -> Floats:
    """The scores with the parameters as plain inputs of the graph: what an adapter of them must give."""
    write_decoder(tmp_path / "plain.onnx")
    session = ort.InferenceSession(tmp_path / "plain.onnx", providers=["CPUExecutionProvider"])
    found = []
    for row in ROWS:
        n = len(row.ids)
        inputs = {
            "input_ids": np.array([row.ids]),
            "position_ids": np.arange(n)[None],
            "mask": np.tri(n, dtype=bool)[None, None],
            "ends": np.array([n - 1]),
        }
        found.append(session.run(["logits"], inputs | parameters)[0][0])
    return np.array(found)


def test_delta_gives_the_score_of_its_own_weights_whatever_is_collected(pool, store, tmp_path) -> None:
    trunk = publish_decoder(store)
    model = load(pool, store, publish_delta(store, trunk, lora(1)))
    gc.collect()
    np.testing.assert_allclose(logits(model), folded(tmp_path, lora(1)), atol=1e-5)
    gc.collect()
    np.testing.assert_allclose(logits(model), folded(tmp_path, lora(1)), atol=1e-5)
    assert np.abs(logits(model) - folded(tmp_path, {})).max() > 0.1


def test_version_without_an_adapter_gives_the_graphs_own_score(pool, store, tmp_path) -> None:
    trunk = load(pool, store, publish_decoder(store))
    np.testing.assert_allclose(logits(trunk), folded(tmp_path, {}), atol=1e-5)


def test_adapter_of_rank_0_gives_the_trunks_score(pool, store) -> None:
    manifest = publish_decoder(store)
    nothing = {"lora.value.A": np.zeros((WIDTH, 0), np.float32), "lora.value.B": np.zeros((0, WIDTH), np.float32)}
    trunk, delta = load(pool, store, manifest), load(pool, store, publish_delta(store, manifest, nothing))
    np.testing.assert_array_equal(logits(delta), logits(trunk))


def test_versions_over_one_session_alternate_without_mixing(pool, store, tmp_path) -> None:
    manifest = publish_decoder(store)
    trunk = load(pool, store, manifest)
    deltas = [load(pool, store, publish_delta(store, manifest, lora(seed, rank=seed))) for seed in (1, 2, 3)]
    assert pool.sessions == 1
    expected = [folded(tmp_path, {}), *(folded(tmp_path, lora(seed, rank=seed)) for seed in (1, 2, 3))]
    for _ in range(5):
        for model, right in zip((trunk, *deltas), expected, strict=True):
            np.testing.assert_allclose(logits(model), right, atol=1e-5)


def test_session_is_freed_with_the_last_version_over_it(pool, store, tmp_path) -> None:
    manifest = publish_decoder(store)
    trunk, delta = load(pool, store, manifest), load(pool, store, publish_delta(store, manifest, lora(1)))
    trunk.close()
    assert pool.sessions == 1
    np.testing.assert_allclose(logits(delta), folded(tmp_path, lora(1)), atol=1e-5)
    delta.close()
    assert pool.sessions == 0


def test_delta_loads_while_its_trunk_serves_though_the_stores_copy_is_gone(pool, store) -> None:
    manifest = publish_decoder(store)
    delta = publish_delta(store, manifest, lora(1))
    trunk = load(pool, store, manifest)
    Path(store.path("reward", manifest.version), "model.onnx").unlink()
    assert np.isfinite(logits(load(pool, store, delta))).all()
    assert trunk.cost == load(pool, store, delta).cost


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"lora.query.A": np.zeros((WIDTH, 2), np.float32)}, r"lora\.query\.A"),
        ({"input_ids": np.ones((1, 2), np.int64)}, "input_ids"),
        (lora(1) | {"lora.value.A": np.zeros((WIDTH + 1, 2), np.float32)}, r"lora\.value\.A"),
        (lora(1) | {"lora.value.A": np.zeros((WIDTH, 2), np.float64)}, r"lora\.value\.A"),
        (lora(1) | {"lora.value.A": np.zeros((WIDTH, 3), np.float32)}, "does not run"),
        ({"lora.value.A": np.zeros((WIDTH, 2), np.float32)}, "does not run"),
        ({"heads.bias": np.zeros(HEADS + 1, np.float32)}, r"heads\.bias"),
        ({"heads.bias": np.full(HEADS, np.nan, np.float32)}, "not finite"),
        ({}, "empty"),
    ],
)
def test_adapter_that_does_not_fit_the_graph_is_refused(pool, store, parameters, named) -> None:
    delta = publish_delta(store, publish_decoder(store), parameters)
    with pytest.raises(NotLoadable, match=named):
        load(pool, store, delta)
    assert pool.sessions == 0


def test_trunk_of_another_digest_is_refused(pool, store) -> None:
    first, second = publish_decoder(store, seed=0), publish_decoder(store, seed=1)
    delta = publish_delta(store, Trunk(first.version, second.digest), lora(1))
    with pytest.raises(NotLoadable, match="digest"):
        load(pool, store, delta)


def test_altered_trunk_is_refused(pool, store) -> None:
    trunk = publish_decoder(store)
    delta = publish_delta(store, trunk, lora(1))
    with Path(store.path("reward", trunk.version), "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptVersion):
        load(pool, store, delta)


def test_delta_over_a_delta_or_over_nothing_is_refused(pool, store) -> None:
    delta = publish_delta(store, publish_decoder(store), lora(1))
    with pytest.raises(NotLoadable, match="delta itself"):
        load(pool, store, publish_delta(store, delta, lora(2)))
    with pytest.raises(NotLoadable, match="does not have"):
        load(pool, store, publish_delta(store, Trunk("99", "0" * 64), lora(2)))


def test_wrong_number_of_heads_and_foreign_graphs_are_refused(pool, store) -> None:
    manifest = publish_sum_version(store)
    directory = store.fetch("reward", manifest.version)
    with pytest.raises(NotLoadable, match="logits of shape"):
        pool.load(replace(manifest, heads=3), directory)

    def write(target: Path) -> None:
        (target / "model.onnx").write_bytes(b"no graph")
        word_tokenizer().save(str(target / "tokenizer.json"))

    broken = store.publish(replace(manifest, version="", digest=""), write)
    with pytest.raises(NotLoadable, match="does not load"):
        load(pool, store, broken)
    assert pool.sessions == 0


def test_cost_constants_are_on_the_metrics_page_while_the_version_is_loaded(store) -> None:
    metrics = ServerMetrics()
    pool = SessionPool(store, Device("cpu", 1, spin=False), metrics)
    model = load(pool, store, publish_decoder(store))
    labels = {"model": "reward", "version": model.manifest.version, "term": "fixed"}
    assert metrics.registry.get_sample_value("rewardloop_cost_model_seconds", labels) == model.cost.fixed_s > 0
    model.close()
    assert metrics.registry.get_sample_value("rewardloop_cost_model_seconds", labels) is None


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_version_that_would_run_on_another_device_is_not_loaded(store: ModelStore) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    pool = SessionPool(store, Device("cuda", 1, spin=False), ServerMetrics())
    with pytest.raises(NotLoadable, match="device is cuda:0, but ONNX Runtime could not start CUDAExecutionProvider"):
        load(pool, store, publish_sum_version(store))
    with pytest.raises(NotLoadable, match="its precision is int8"):
        load(pool, store, replace(publish_sum_version(store), precision="int8"))
