"""Versions to swap between, made without training: deltas over an exported graph, and graphs of their own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from rewardloop.formats.store import ADAPTER, Manifest, ModelStore, Trunk

HEAD = "heads.weight"


def trunk(store: ModelStore, exported: Manifest) -> Manifest:
    """``exported`` where its graph lets an adapter set the head, else the same graph published so that it does."""
    graph = onnx.load(store.fetch("reward", exported.version) / "model.onnx").graph
    return exported if HEAD in {i.name for i in graph.input} else graph_version(store, exported, seed=0)


def head(store: ModelStore, version: Manifest) -> npt.NDArray[np.float32]:
    graph = onnx.load(store.fetch("reward", version.version) / "model.onnx").graph
    weights: npt.NDArray[np.float32] = numpy_helper.to_array(next(i for i in graph.initializer if i.name == HEAD))
    return weights


def delta(store: ModelStore, over: Manifest, default: npt.NDArray[np.float32], seed: int) -> Manifest:
    """A version over the graph of ``over`` whose head is ``default`` with noise of its own size."""
    return adapter_version(store, over, {HEAD: _noisy(default, seed)})


def adapter_version(store: ModelStore, over: Manifest, values: Mapping[str, npt.NDArray[np.float32]]) -> Manifest:
    """A version over the graph of ``over`` that sets the adapter inputs which are named."""
    source = store.fetch("reward", over.version)

    def write(directory: Path) -> None:
        adapter = ort.AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(1)
        adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
        adapter.export_adapter(str(directory / ADAPTER))
        shutil.copy(source / "tokenizer.json", directory)

    return store.publish(replace(over, trunk=Trunk(over.version, over.digest)), write)


def graph_version(store: ModelStore, like: Manifest, seed: int) -> Manifest:
    """A version with a graph of its own: that of ``like`` with a noisy head, which an adapter may set."""
    source = store.fetch("reward", like.version)
    model = onnx.load(source / "model.onnx")
    name = HEAD if any(i.name == HEAD for i in model.graph.initializer) else _last_weight(model.graph)
    weights = next(i for i in model.graph.initializer if i.name == name)
    array = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(_noisy(array, seed), HEAD))
    for node in model.graph.node:
        node.input[:] = [HEAD if each == name else each for each in node.input]
    if HEAD not in {i.name for i in model.graph.input}:
        model.graph.input.append(onnx.helper.make_tensor_value_info(HEAD, onnx.TensorProto.FLOAT, array.shape))

    def write(directory: Path) -> None:
        onnx.save(model, directory / "model.onnx")
        shutil.copy(source / "tokenizer.json", directory)

    return store.publish(replace(like, trunk=None), write)


def _noisy(array: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=array.shape).astype(np.float32)
    return array + noise * (0.0 if seed == 0 else float(array.std()))


def _last_weight(graph: onnx.GraphProto) -> str:
    """The matrix of the last product: the head's."""
    matrices = {i.name for i in graph.initializer if len(i.dims) == 2}
    products = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and matrices & set(n.input)]
    return next(name for name in products[-1].input if name in matrices)
