"""What ONNX Runtime does with adapters without saying so, and that a served score is not touched by it.

The first test of each pair pins the runtime's behaviour: where a newer one mends it, the test says so by failing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from support.adapter_graphs import WIDTH, lora, publish_decoder, publish_delta, write_decoder

from rewardloop.formats.store import ADAPTER, ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics

ROW = Encoded([1, 4, 5, 2, 6, 7, 2], None, False, 3, 4)
INPUTS = {
    "input_ids": np.array([ROW.ids]),
    "position_ids": np.arange(len(ROW.ids))[None],
    "mask": np.tri(len(ROW.ids), dtype=bool)[None, None],
    "ends": np.array([len(ROW.ids) - 1]),
}


@pytest.fixture
def session(tmp_path: Path) -> Any:
    write_decoder(tmp_path / "model.onnx")
    return ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])


def adapter_of(path: Path, parameters: dict[str, np.ndarray], model_version: int = 1) -> Any:
    file = ort.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(model_version)
    file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in parameters.items()})
    file.export_adapter(str(path))
    adapter = ort.LoraAdapter()
    adapter.Load(str(path))
    return adapter


def with_adapters(session: Any, *adapters: Any) -> np.ndarray:
    options = ort.RunOptions()
    for adapter in adapters:
        options.add_active_adapter(adapter)
    return session.run(["logits"], INPUTS, options)[0]


def test_the_runtime_ignores_an_adapter_under_an_io_binding(session: Any, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path / "a", lora(1))
    options = ort.RunOptions()
    options.add_active_adapter(adapter)
    binding = session.io_binding()
    for name, array in INPUTS.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("logits")
    session.run_with_iobinding(binding, options)
    bound = binding.copy_outputs_to_cpu()[0]
    np.testing.assert_array_equal(bound, session.run(["logits"], INPUTS)[0])
    assert np.abs(bound - with_adapters(session, adapter)).max() > 0.1


def test_the_runtime_takes_the_first_of_adapters_that_overlap(session: Any, tmp_path: Path) -> None:
    first, second = adapter_of(tmp_path / "a", lora(1)), adapter_of(tmp_path / "b", lora(2))
    np.testing.assert_array_equal(with_adapters(session, first, second), with_adapters(session, first))
    assert np.abs(with_adapters(session, first) - with_adapters(session, second)).max() > 0.1


def test_the_runtime_takes_an_adapter_made_for_another_model_version(session: Any, tmp_path: Path) -> None:
    mine, other = adapter_of(tmp_path / "a", lora(1)), adapter_of(tmp_path / "b", lora(1), model_version=77)
    np.testing.assert_array_equal(with_adapters(session, other), with_adapters(session, mine))


@pytest.mark.parametrize("binds", [False, True], ids=["active", "bound"])
def test_a_served_delta_is_scored_by_its_adapter_alone_and_over_its_own_trunk(
    tmp_path: Path, session: Any, binds: bool
) -> None:
    store = ModelStore(tmp_path / "store")
    pool = SessionPool(store, Device("cpu", 1, spin=False, binds_adapters=binds), ServerMetrics())
    trunk, other = publish_decoder(store), publish_decoder(store, seed=1)
    first, second = (publish_delta(store, trunk, lora(seed)) for seed in (1, 2))
    models = [pool.load(m, store.fetch("reward", m.version)) for m in (trunk, first, second)]
    for model, seed in [(models[1], 1), (models[2], 2), (models[1], 1)]:
        expected = with_adapters(session, adapter_of(tmp_path / f"alone-{seed}", lora(seed)))
        np.testing.assert_allclose(model.run([ROW])[0], expected, atol=1e-5)
    # The same adapter file over another trunk is another version, and gives that trunk's score.
    moved = publish_delta(store, other, lora(1))
    assert (
        np.abs(pool.load(moved, store.fetch("reward", moved.version)).run([ROW])[0] - models[1].run([ROW])[0]).max()
        > 0.1
    )
    assert moved.digest != first.digest


def test_an_adapter_cut_short_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    pool = SessionPool(store, Device("cpu", 1, spin=False), ServerMetrics())
    delta = publish_delta(store, publish_decoder(store), {"lora.value.A": np.zeros((WIDTH, 0), np.float32)})
    directory = Path(store.path("reward", delta.version))
    (directory / ADAPTER).write_bytes((directory / ADAPTER).read_bytes()[:40])
    with pytest.raises(NotLoadable):
        pool.load(delta, directory)


def test_a_bound_adapter_gives_exactly_the_scores_of_an_active_one(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    trunk = publish_decoder(store)
    deltas = [publish_delta(store, trunk, lora(seed, rank=seed)) for seed in (1, 2)]
    for delta in deltas:
        active, bound = (
            SessionPool(store, Device("cpu", 1, spin=False, binds_adapters=binds), ServerMetrics()).load(
                delta, store.fetch("reward", delta.version)
            )
            for binds in (False, True)
        )
        feeds = active.lay_out([ROW], active.plan([ROW])[0])
        np.testing.assert_array_equal(bound.execute(feeds), active.execute(feeds))
