"""Tiny decoder graphs with adapter inputs: one attention layer over token and position embeddings.

The graph is a real one to the engine: ``input_ids, position_ids, branches, ends, response_columns, response_places`` ->
``logits``, or what earlier exports took: no ``response_..``, or a mask in the place of the branches. Its logit depends
on every token that the last one sees and on where it stands, and ``lora.value.A``, ``lora.value.B`` (rank 0 by
default), ``heads.weight`` and ``heads.bias`` may be set by an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import ADAPTER, Manifest, ModelStore, Trunk
from rewardloop_trainer.export.attention.branches import take_branches
from support.reward_graphs import word_tokenizer

WIDTH, HEADS, MAX_LENGTH, TOKENS = 16, 2, 512, 12

Arrays = Mapping[str, npt.NDArray[Any]]
# What tells a graph which tokens see which: what graphs take now, and what earlier exports took.
Takes = Literal["responses", "branches", "mask"]


def write_decoder(path: Path, seed: int = 0, *, mask_rows: str = "masks", takes: Takes = "mask") -> None:
    """``mask_rows``: the symbolic size of the mask's first axis; "rows" is that of the ids."""
    draw = np.random.default_rng(seed)

    def weights(*shape: int) -> npt.NDArray[np.float32]:
        return draw.normal(size=shape).astype(np.float32)

    nodes = [
        helper.make_node("Gather", ["tokens", "input_ids"], ["embedded"]),
        helper.make_node("Gather", ["places", "position_ids"], ["placed"]),
        helper.make_node("Add", ["embedded", "placed"], ["x"]),
        helper.make_node("MatMul", ["x", "query"], ["q_flat"]),
        helper.make_node("MatMul", ["x", "key"], ["k_flat"]),
        helper.make_node("MatMul", ["x", "value"], ["v_base"]),
        helper.make_node("MatMul", ["x", "lora.value.A"], ["v_a"]),
        helper.make_node("MatMul", ["v_a", "lora.value.B"], ["v_ab"]),
        helper.make_node("Add", ["v_base", "v_ab"], ["v_flat"]),
        *(helper.make_node("Reshape", [f"{each}_flat", "split"], [f"{each}_split"]) for each in "qkv"),
        *(helper.make_node("Transpose", [f"{each}_split"], [each], perm=[0, 2, 1, 3]) for each in "qkv"),
        helper.make_node("Attention", ["q", "k", "v", "mask"], ["seen_split"]),
        helper.make_node("Transpose", ["seen_split"], ["seen_apart"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["seen_apart", "join"], ["seen"]),
        helper.make_node("Add", ["x", "seen"], ["states"]),
        helper.make_node("Reshape", ["states", "flat"], ["all"]),
        helper.make_node("Gather", ["all", "ends"], ["last"]),
        helper.make_node("Gemm", ["last", "heads.weight", "heads.bias"], ["logits"], transB=1),
    ]
    arrays = {
        "tokens": weights(TOKENS, WIDTH),
        "places": weights(MAX_LENGTH, WIDTH),
        "query": weights(WIDTH, WIDTH) / 4,
        "key": weights(WIDTH, WIDTH) / 4,
        "value": weights(WIDTH, WIDTH) / 4,
        "lora.value.A": weights(WIDTH, 0),
        "lora.value.B": weights(0, WIDTH),
        "heads.weight": weights(HEADS, WIDTH),
        "heads.bias": weights(HEADS),
        "flat": np.array([-1, WIDTH], dtype=np.int64),
        "split": np.array([0, 0, 2, -1], dtype=np.int64),
        "join": np.array([0, 0, -1], dtype=np.int64),
    }
    value = helper.make_tensor_value_info
    inputs = [
        value("input_ids", TensorProto.INT64, ["rows", "length"]),
        value("position_ids", TensorProto.INT64, ["rows", "length"]),
        value("mask", TensorProto.BOOL, [mask_rows, 1, "length", "length"]),
        value("ends", TensorProto.INT64, ["responses"]),
        value("lora.value.A", TensorProto.FLOAT, [WIDTH, "rank"]),
        value("lora.value.B", TensorProto.FLOAT, ["rank", WIDTH]),
        value("heads.weight", TensorProto.FLOAT, [HEADS, WIDTH]),
        value("heads.bias", TensorProto.FLOAT, [HEADS]),
    ]
    outputs = [value("logits", TensorProto.FLOAT, ["responses", HEADS])]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    if takes != "mask":
        take_branches(model, None)
    if takes == "branches":
        for name, empty in (("response_columns", np.zeros((0, 0))), ("response_places", np.zeros(0))):
            model.graph.input.remove(next(i for i in model.graph.input if i.name == name))
            model.graph.initializer.append(numpy_helper.from_array(empty.astype(np.int64), name))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_adapter(path: Path, parameters: Arrays) -> None:
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in parameters.items()})
    adapter.export_adapter(str(path))


def lora(seed: int, rank: int = 2) -> dict[str, npt.NDArray[np.float32]]:
    """Parameters of an adapter that changes every score visibly."""
    draw = np.random.default_rng(seed)
    return {
        "lora.value.A": draw.normal(size=(WIDTH, rank)).astype(np.float32),
        "lora.value.B": draw.normal(size=(rank, WIDTH)).astype(np.float32),
        "heads.bias": draw.normal(size=HEADS).astype(np.float32),
    }


def publish_decoder(store: ModelStore, seed: int = 0, *, mask_rows: str = "masks", takes: Takes = "mask") -> Manifest:
    def write(directory: Path) -> None:
        write_decoder(directory / "model.onnx", seed, mask_rows=mask_rows, takes=takes)
        word_tokenizer().save(str(directory / "tokenizer.json"))

    return store.publish(_manifest(), write)


def publish_delta(store: ModelStore, trunk: Manifest | Trunk, parameters: Arrays) -> Manifest:
    """A version that is an adapter over ``trunk``."""

    def write(directory: Path) -> None:
        write_adapter(directory / ADAPTER, parameters)
        word_tokenizer().save(str(directory / "tokenizer.json"))

    return store.publish(_manifest(Trunk(trunk.version, trunk.digest)), write)


def _manifest(trunk: Trunk | None = None) -> Manifest:
    text_format = TextFormat.for_encoder(word_tokenizer()).to_json()
    return Manifest(model="reward", text_format=text_format, max_length=MAX_LENGTH, heads=HEADS, trunk=trunk)
