"""What the torch engine takes and what it refuses, how its runs are stopped, and what its versions share."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from structlog.testing import capture_logs
from support.reward_bases import exported, trained_delta
from support.torch_versions import (
    DEVICE,
    by_run,
    grouped,
    load,
    publish,
    publish_export,
    publish_torch_delta,
    runs_of,
    torch_pool,
)

from rewardloop.formats.store import CorruptVersion, Manifest, ModelStore
from rewardloop_reward.described_tensors import load_described, save_described
from rewardloop_server.calls.errors import InternalError, NotLoadable
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.device.choose import Device
from rewardloop_server.guard.watch import RunBounds, Watch
from rewardloop_server.loading.limits import LoadLimits
from rewardloop_server.loading.opened import OpenGraph
from rewardloop_server.loading.prober import TORCH_PROBE, Prober, child_of
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.engine import OutOfMemory, RewardModel
from rewardloop_server.torch_engine import attention
from rewardloop_server.torch_engine.network import Stopped
from rewardloop_server.torch_engine.opening import OpenTorch
from rewardloop_server.torch_engine.runner import TorchRunner
from rewardloop_trainer.export.precision import Precision, convert


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def changed(store: ModelStore, change: Callable[[Path], object], precision: str = "float32") -> Manifest:
    """Publish the export of a Llama whose files were changed before."""
    export = exported("llama")
    directory = Path(store.url).parent / "changed"
    shutil.copytree(export.directory, directory)
    change(directory)
    return publish(store, directory, export.encoder, 3, precision)


def other_heads(directory: Path) -> None:
    path = directory / "torch" / "heads.safetensors"
    tensors, about = load_described(path)
    tensors["heads.weight"][0, 0] += 0.01
    save_described(path, tensors, about)


def an_adapter_config(directory: Path) -> None:
    (directory / "torch" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/where"}))


@pytest.mark.parametrize(
    ("change", "precision", "said"),
    [
        (lambda directory: shutil.rmtree(directory / "torch"), "float32", "no torch model beside its graph"),
        (other_heads, "float32", "differ from those of its graph by"),
        (lambda directory: None, "int8", "does not run int8; --engine onnx does"),
        (an_adapter_config, "float32", r"torch/adapter_config\.json is no file of a torch model"),
        (lambda directory: (directory / "torch" / "model.safetensors").unlink(), "float32", "does not load"),
        (lambda directory: (directory / "torch" / "heads.safetensors").unlink(), "float32", "does not load"),
    ],
    ids=["none", "other heads", "int8", "an adapter", "no weights", "no heads"],
)
def test_a_version_whose_torch_model_is_not_its_graph_is_refused(
    change: Callable[[Path], object], precision: str, said: str, store: ModelStore
) -> None:
    manifest, pool = changed(store, change, precision), torch_pool(store)
    with pytest.raises(NotLoadable, match=said):
        load(pool, store, manifest)
    assert pool.sessions == 0


def test_altered_weights_are_refused_by_their_digest(store: ModelStore) -> None:
    manifest = publish_export(store, exported("llama"))
    with Path(store.path("reward", manifest.version), "torch", "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CorruptVersion, match=r"torch/model\.safetensors"):
        load(torch_pool(store), store, manifest)


def test_a_delta_whose_factors_are_not_its_adapter_is_refused(store: ModelStore) -> None:
    export = exported("llama")
    manifest, pool = publish_export(store, export), torch_pool(store)
    delta = trained_delta(export.model)
    sound = publish_torch_delta(store, manifest, export.encoder, delta)
    directory = Path(store.url).parent / "delta"
    shutil.copytree(store.fetch("reward", sound.version), directory)
    (directory / "manifest.json").unlink()
    tensors, about = load_described(directory / "torch" / "lora.safetensors")
    save_described(directory / "torch" / "lora.safetensors", tensors, about | {"alpha": "7"})
    other = Manifest(
        model="reward", text_format=sound.text_format, max_length=sound.max_length, heads=3, trunk=sound.trunk
    )
    other = store.publish(other, lambda target: shutil.copytree(directory, target, dirs_exist_ok=True) and None)
    with pytest.raises(NotLoadable, match="differ from those of its graph"):
        load(pool, store, other)
    assert pool.sessions == 0
    load(pool, store, sound)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("is_sound", [True, False])
def test_half_precision_is_proven_within_its_tolerance(precision: Precision, is_sound: bool, store: ModelStore) -> None:
    def change(directory: Path) -> None:
        convert(directory / "model.onnx", precision)
        if not is_sound:
            path = directory / "torch" / "heads.safetensors"
            tensors, about = load_described(path)
            tensors["heads.weight"] *= 1.3
            save_described(path, tensors, about)

    manifest = changed(store, change, precision)
    if is_sound:
        load(torch_pool(store), store, manifest)
        return
    with pytest.raises(NotLoadable, match=f"the tolerance of {precision}"):
        load(torch_pool(store), store, manifest)


def test_a_version_is_tried_by_torch_in_a_child_process_first(store: ModelStore) -> None:
    limits = LoadLimits(least_s=120.0)
    prober = Prober(DEVICE, limits, child_of(TORCH_PROBE))
    pool = SessionPool(store, DEVICE, ServerMetrics(), limits=limits, prober=prober, opens=OpenTorch)
    with capture_logs() as logs:
        model = load(pool, store, publish_export(store, exported("llama")))
    assert next(each["event"] for each in logs if "event" in each) == "version tried"
    assert model.signature.shares_prompts
    with pytest.raises(NotLoadable, match="differ from those of its graph"):
        prober.probe(manifest := changed(store, other_heads), store.fetch("reward", manifest.version))


def llama(store: ModelStore) -> RewardModel:
    return load(torch_pool(store), store, publish_export(store, exported("llama")))


def test_a_run_that_was_told_to_stop_stops_before_its_next_layer(store: ModelStore) -> None:
    model, rows = llama(store), grouped(260)
    options, entered = model.options(), list[str]()
    trunk: Any = runner_of(model)._networks[0].trunk.network.trunk

    def stop(*_: object) -> None:
        entered.append("layer")
        options.terminate = True

    hooks = [layer.register_forward_hook(stop) for layer in trunk.layers]
    run = runs_of(rows, trees=True)[0]
    with pytest.raises(Stopped):
        model.execute(model.lay_out(rows, run), options=options)
    assert entered == ["layer"]
    for hook in hooks:
        hook.remove()
    assert model.works()


async def test_a_request_whose_run_does_not_end_fails_alone_and_others_are_scored(store: ModelStore) -> None:
    model, rows, bounds = llama(store), grouped(260), RunBounds(least_s=0.5, grace_s=20.0)
    trunk: Any = runner_of(model)._networks[0].trunk.network.trunk

    def take_long(module: Any, given: Any, output: Any) -> None:
        if output.shape[1] == len(rows[0].ids):
            time.sleep(1.5)

    trunk.layers[0].register_forward_hook(take_long)
    watch, metrics = Watch(bounds.grace_s), ServerMetrics()
    lanes = {lane: LaneLimits(max_tokens=10**6) for lane in QUEUE_LANES}
    batcher = Batcher(
        token_budget=4096, lanes=lanes, trainer_max_wait_s=0.05, metrics=metrics, watch=watch, bounds=bounds
    )
    tasks = [asyncio.create_task(each) for each in (batcher.run(), watch.run())]
    with pytest.raises(InternalError):
        await batcher.score(model, [rows[0]], "production", None)
    while batcher.is_stuck:  # noqa: ASYNC110 - it is set by a thread
        await asyncio.sleep(0.02)
    assert np.isfinite((await batcher.score(model, [rows[1]], "production", None)).logits).all()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_too_little_memory_is_told_as_such(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = llama(store), grouped(260)
    run = runs_of(rows, trees=True)[0]

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("rewardloop_server.torch_engine.network.Network.logits", fail)
    with pytest.raises(OutOfMemory, match="Tried to allocate"):
        model.execute(model.lay_out(rows, run))

    def need(*_: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr("rewardloop_server.torch_engine.network.Network.logits", need)
    with pytest.raises(OutOfMemory):
        model.execute(model.lay_out(rows, run))


def runner_of(model: RewardModel) -> TorchRunner:
    assert isinstance(model._runner, TorchRunner)
    return model._runner


def test_deltas_share_the_trunk_and_the_last_version_frees_it(store: ModelStore) -> None:
    export = exported("llama")
    manifest, pool = publish_export(store, export), torch_pool(store)
    deltas = [
        load(pool, store, publish_torch_delta(store, manifest, export.encoder, trained_delta(export.model, seed=seed)))
        for seed in (1, 2)
    ]
    trunks = WeakSet(runner_of(each)._networks[0].trunk for each in deltas)
    assert len(trunks) == 1
    deltas[0].close()
    assert np.isfinite(by_run(deltas[1], grouped(260))[0]).all()
    deltas[1].close()
    assert pool.sessions == 0
    deltas.clear()
    gc.collect()
    assert not trunks


def test_threads_run_versions_over_one_trunk_at_once_without_mixing(store: ModelStore) -> None:
    export = exported("llama")
    manifest, pool = publish_export(store, export), torch_pool(store, Device("cpu", 2, spin=False, streams=2))
    models = [load(pool, store, manifest)]
    models += [
        load(pool, store, publish_torch_delta(store, manifest, export.encoder, trained_delta(export.model, seed=seed)))
        for seed in (1, 2)
    ]
    rows = grouped(260)
    expected = [by_run(model, rows) for model in models]
    wrong = list[float]()

    def run(which: int) -> None:
        for _ in range(3):
            for found, right in zip(by_run(models[which], rows), expected[which], strict=True):
                wrong.append(float(np.abs(found - right).max()))

    threads = [threading.Thread(target=run, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(wrong) <= 1e-5
    assert len(wrong) == 3 * 3 * len(expected[0])


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_no_mask_of_two_lengths_is_made_where_none_is_needed(
    kind: str, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(torch_pool(store), store, publish_export(store, exported(kind)))
    rows = grouped(260)
    masks = list[Any]()
    whole = attention._sdpa

    def note(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        masks.append(None if mask is None else tuple(mask.shape))
        return whole(module, query, key, value, mask, **given)

    monkeypatch.setattr(attention, "_sdpa", note)
    together, alone, *_, shared = runs_of(rows, trees=kind == "llama")
    model.execute(model.lay_out(rows, alone))
    assert set(masks) == {None}
    masks.clear()
    model.execute(model.lay_out(rows, together))
    assert set(masks) == ({None} if kind == "llama" else {(len(rows), 1, 1, together.length)})
    if kind == "llama":
        masks.clear()
        model.execute(model.lay_out(rows, shared))
        prompt = rows[shared.rows[0]].prompt_tokens
        longest = max(len(rows[i].ids) for i in shared.rows)
        assert set(masks) == {None, (1, 1, longest - prompt, longest)}


def test_the_graph_is_let_go_after_the_proof(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """So weights are in memory once: those of torch, which a file of the version has as well."""
    manifest = publish_export(store, exported("llama"))
    graphs = WeakSet[OpenGraph]()

    class Noted(OpenGraph):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            graphs.add(self)

    monkeypatch.setattr("rewardloop_server.torch_engine.opening.OpenGraph", Noted)
    model = load(torch_pool(store), store, manifest)
    gc.collect()
    assert not graphs
    stored = load_file(Path(store.path("reward", manifest.version), "torch", "model.safetensors"))
    held = dict(runner_of(model)._networks[0].trunk.network.trunk.named_parameters())
    assert all(torch.equal(held[name], tensor) for name, tensor in stored.items())
