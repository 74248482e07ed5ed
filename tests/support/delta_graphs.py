"""Reward versions over one graph whose right score is known without a model: a trunk, and deltas that are a file.

As in `reward_graphs`, the logit is the sum of the pair's token ids times the version's factor; here the factor is the
parameter ``heads.weight``, which an adapter sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import ADAPTER, Manifest, ModelStore, Trunk
from support.reward_graphs import word_tokenizer

HEADS = "heads.weight"


def publish_sum_trunk(store: ModelStore, *, factor: float = 1.0) -> Manifest:
    """A version with a graph of its own, whose head deltas may set."""
    tokenizer = word_tokenizer()

    def write(directory: Path) -> None:
        _write_graph(directory / "model.onnx", factor)
        tokenizer.save(str(directory / "tokenizer.json"))

    return store.publish(_manifest(), write)


def publish_sum_delta(store: ModelStore, trunk: Manifest, *, factor: float) -> Manifest:
    """A version over the graph of ``trunk``."""
    tokenizer = word_tokenizer()

    def write(directory: Path) -> None:
        adapter = ort.AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(1)
        adapter.set_parameters({HEADS: ort.OrtValue.ortvalue_from_numpy(_heads(factor))})
        adapter.export_adapter(str(directory / ADAPTER))
        tokenizer.save(str(directory / "tokenizer.json"))

    return store.publish(_manifest(Trunk(trunk.version, trunk.digest)), write)


def _manifest(trunk: Trunk | None = None) -> Manifest:
    text_format = TextFormat.for_encoder(word_tokenizer()).to_json()
    return Manifest(model="reward", text_format=text_format, max_length=64, heads=2, trunk=trunk)


def _heads(factor: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array([[factor, 2 * factor]], dtype=np.float32)


def _write_graph(path: Path, factor: float) -> None:
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["real"]),
        helper.make_node("Cast", ["real"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axis"], ["total"], keepdims=1),
        helper.make_node("MatMul", ["total", HEADS], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in ("input_ids", "attention_mask")]
    inputs.append(helper.make_tensor_value_info(HEADS, TensorProto.FLOAT, [1, 2]))
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])
    initializers = [
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
        numpy_helper.from_array(_heads(factor), HEADS),
    ]
    graph = helper.make_graph(nodes, "sum", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
