"""A version that takes more time or memory than a load may is refused by a child process, and never loaded here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from structlog.testing import capture_logs
from support.delta_graphs import publish_sum_delta, publish_sum_trunk
from support.pooled_loading import load as load_pooled
from support.pooled_loading import loading
from support.pooling_server import pooling_server, publish_sum_pool, sum_of
from support.reward_graphs import WORDS, publish_sum_version, word_tokenizer, write_sum_graph

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_server.calls.errors import NotLoadable, UnsafeVersionError
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.limits import LoadLimits
from rewardloop_server.loading.memory import anonymous_bytes, available_bytes
from rewardloop_server.loading.prober import Prober
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics

DEVICE = Device("cpu", 1, spin=False)
LIMITS = LoadLimits(least_s=60.0, memory_bytes=2**28)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def publish(store: ModelStore, write_graph: Callable[[Path], object]) -> Manifest:
    def write(directory: Path) -> None:
        write_graph(directory / "model.onnx")
        word_tokenizer().save(str(directory / "tokenizer.json"))

    text_format = TextFormat.for_encoder(word_tokenizer()).to_json()
    return store.publish(Manifest("reward", text_format=text_format, max_length=64, heads=2), write)


def load(store: ModelStore, manifest: Manifest, limits: LoadLimits = LIMITS) -> None:
    pool = SessionPool(store, DEVICE, ServerMetrics(), limits=limits, prober=Prober(DEVICE, limits))
    before = anonymous_bytes(os.getpid())
    try:
        pool.load(manifest, store.fetch("reward", manifest.version)).close()
    finally:
        assert pool.sessions == 0
        assert anonymous_bytes(os.getpid()) - before < 2**27


def test_a_sound_version_passes_once_and_says_what_it_took(store: ModelStore) -> None:
    manifest = publish_sum_version(store)
    prober = Prober(DEVICE, LIMITS)
    with capture_logs() as logs:
        prober.probe(manifest, store.fetch("reward", manifest.version))
        prober.probe(manifest, store.fetch("reward", manifest.version))
    assert [entry["event"] for entry in logs] == ["version tried"]
    assert logs[0]["peak_mib"] < 2**8


@dataclass(frozen=True, slots=True)
class ShortRuns(LoadLimits):
    """A child may start and open a graph for as long as a busy machine needs; its runs may take two seconds."""

    def run_s(self, size: int) -> float:
        return 2.0


def test_a_graph_that_does_not_end_at_its_first_run_is_refused_in_time(store: ModelStore) -> None:
    manifest = publish_sum_version(store, hangs_on=WORDS[-1])  # a load tries the highest token
    limits = ShortRuns(least_s=200.0, allows_loops=True)
    with pytest.raises(NotLoadable, match="'first run' does not end within 2 s"):
        load(store, manifest, limits)


def test_a_loop_that_nothing_bounds_is_refused_unless_loops_are_allowed(store: ModelStore) -> None:
    manifest = publish_sum_version(store, loops_on=WORDS[0])
    with pytest.raises(NotLoadable, match=r"nothing bounds its loops .'Loop'.*--allow-loops"):
        load(store, manifest)
    load(store, manifest, replace(LIMITS, allows_loops=True))


def _zeros(path: Path, count: int = 750_000_000) -> None:
    """A graph of a few hundred bytes that asks for 3 GB."""
    write_sum_graph(path)
    model = onnx.load(path)
    graph = model.graph
    graph.node[-1].output[0] = "sound"
    size = numpy_helper.from_array(np.array([count], dtype=np.int64), "size")
    graph.initializer.append(size)
    graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
            helper.make_node("Add", ["sound", "zero"], ["logits"]),
        ]
    )
    onnx.save(model, path)


def _values(path: Path) -> None:
    """Two bytes for each of four million values, each of which ONNX Runtime makes an object of."""
    write_sum_graph(path)
    values = b"\x6a\x00" * 4_000_000
    graph = onnx.load(path).graph.SerializeToString() + values
    path.write_bytes(b"\x08\x09\x42\x04\x0a\x00\x10\x12\x3a" + _varint(len(graph)) + graph)


def _nodes(path: Path) -> None:
    graph = b"\x0a\x00" * 15_000_000
    path.write_bytes(b"\x08\x09\x42\x04\x0a\x00\x10\x12\x3a" + _varint(len(graph)) + graph)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize(
    ("write", "said"),
    [(_zeros, "no memory was left"), (_values, "more than 1000000 parts"), (_nodes, "more than 200000 nodes")],
)
def test_a_graph_that_swells_is_refused_and_costs_the_server_nothing(
    store: ModelStore, write: Callable[[Path], object], said: str
) -> None:
    with pytest.raises(NotLoadable, match=said):
        load(store, publish(store, write))


def test_what_the_machine_has_left_is_a_bound_too(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewardloop_server.loading.prober.available_bytes", lambda: 2**26)
    with pytest.raises(NotLoadable, match=r"57 MiB of memory at the step .*this machine has left"):
        load(store, publish(store, lambda path: _zeros(path, count=300_000_000)))


def test_a_refusal_keeps_its_reason(store: ModelStore) -> None:
    def foreign(path: Path) -> None:
        write_sum_graph(path)
        model = onnx.load(path)
        tensor = TensorProto(name="x", data_type=TensorProto.UINT8, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/hostname")
        model.graph.initializer.append(tensor)
        onnx.save(model, path)

    with pytest.raises(UnsafeVersionError, match="tensors in files that are not the version's own"):
        load(store, publish(store, foreign))


def test_words_of_a_library_are_the_cause(store: ModelStore) -> None:
    with pytest.raises(NotLoadable) as caught:
        load(store, publish(store, lambda path: path.write_bytes(b"\x08\x09\x3a\x02\x12\x00")))
    assert "ONNXRuntimeError" not in str(caught.value)
    assert "ONNXRuntimeError" in str(caught.value.__cause__)


def test_a_delta_with_a_tokenizer_of_its_own_is_tried_too(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = publish_sum_trunk(store)
    delta = publish_sum_delta(store, trunk, factor=2.0)
    tried: list[str] = []
    monkeypatch.setattr(Prober, "probe", lambda self, manifest, directory: tried.append(manifest.version))
    load(store, delta)
    assert tried == [trunk.version]


def test_a_version_that_a_server_elsewhere_runs_is_tried_too(tmp_path: Path) -> None:
    manifest = publish_sum_pool(ModelStore(tmp_path / "models"))
    with pooling_server({"judge": sum_of(0.1)}) as server:
        with loading(server.url, prober=Prober(DEVICE, LIMITS)) as pooled, capture_logs() as logs:
            assert load_pooled(pooled, tmp_path, manifest).works()
        assert "version tried" in [entry["event"] for entry in logs]
        server.history.clear()
        dies = [sys.executable, "-c", "raise SystemExit(3)"]
        reason = "the process that tried it ended with status 3"
        with (
            loading(server.url, prober=Prober(DEVICE, LIMITS, dies)) as pooled,
            pytest.raises(NotLoadable, match=reason),
        ):
            load_pooled(pooled, tmp_path, manifest)
        assert server.history == []


def test_a_version_is_tried_on_every_gpu_where_it_will_serve(store: ModelStore, tmp_path: Path) -> None:
    """The child is one that has GPUs, as far as its ONNX Runtime says, and tells what it was asked for, and how many
    sessions were open at once.
    """
    manifest = publish_sum_version(store)
    seen = tmp_path / "seen.json"
    child = f"""
import json, pathlib, sys
sys.path[:] = {sys.path!r}
from rewardloop_server.loading import probe
from support.gpu_runtime import GpuRuntime
import rewardloop_server.device.choose as choose, rewardloop_server.loading.opening as opening
choose.ort = opening.ort = runtime = GpuRuntime()
most = []
runtime.on_run = lambda device_id: most.append(len(runtime.sessions))
tried = probe._try
def telling(order, opens, step):
    found = tried(order, opens, step)
    pathlib.Path({str(seen)!r}).write_text(json.dumps([runtime.asked, max(most)]))
    return found
probe._try = telling
raise SystemExit(probe.main())
"""
    device = Device("cuda", 4, spin=True, streams=2, memory_gb=2.5, tf32=True, binds_adapters=True, device_ids=(1, 3))
    Prober(device, LIMITS, [sys.executable, "-c", child]).probe(manifest, store.fetch("reward", manifest.version))
    asked, most_sessions = json.loads(seen.read_text())
    assert asked == [dict(zip(each.providers, each.provider_options, strict=True)) for each in device.each()]
    assert [options["CUDAExecutionProvider"]["device_id"] for options in asked] == ["1", "3"]
    for options in asked:
        assert options["CUDAExecutionProvider"]["gpu_mem_limit"] == "2500000000"
        assert options["CUDAExecutionProvider"]["use_tf32"] == "1"
    assert most_sessions == 1


def test_a_version_that_one_of_the_gpus_does_not_run_is_refused_with_its_name(store: ModelStore) -> None:
    manifest = publish_sum_version(store)
    child = f"""
import sys
sys.path[:] = {sys.path!r}
from rewardloop_server.loading import probe
from support.gpu_runtime import GpuRuntime
import rewardloop_server.device.choose as choose, rewardloop_server.loading.opening as opening
choose.ort = opening.ort = runtime = GpuRuntime()
def broken(device_id):
    if device_id == 3:
        raise RuntimeError("it is broken")
runtime.on_run = broken
raise SystemExit(probe.main())
"""
    device = Device("cuda", 1, spin=False, device_ids=(1, 3))
    with pytest.raises(NotLoadable, match=r"does not run on .* on cuda:3: RuntimeError"):
        Prober(device, LIMITS, [sys.executable, "-c", child]).probe(manifest, store.fetch("reward", manifest.version))


def test_a_closed_prober_ends_its_child(store: ModelStore) -> None:
    manifest = publish_sum_version(store)
    prober = Prober(DEVICE, LIMITS)
    prober.close()
    with pytest.raises(NotLoadable, match="the process ends"):
        prober.probe(manifest, store.fetch("reward", manifest.version))


def test_memory_that_is_left_is_less_than_the_machine_has() -> None:
    assert 2**20 < available_bytes() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
