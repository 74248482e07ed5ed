"""Attention takes lengths in the place of a mask only if the mask hides nothing but padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewardloop_trainer.export.attention.lengths import take_lengths

WIDTH, HEADS = 8, 2


def encoder(*mask: onnx.NodeProto, more: dict[str, Any] | None = None) -> onnx.ModelProto:
    """One layer of attention over token embeddings, whose mask the nodes make."""
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        **{name: draw.normal(size=(WIDTH, WIDTH)).astype(np.float32) for name in "qkv"},
        "tokens": draw.normal(size=(20, WIDTH)).astype(np.float32),
        "split": np.array([0, 0, HEADS, WIDTH // HEADS]),
        "join": np.array([0, 0, WIDTH]),
        "first": np.array(0),
        "one": np.array(1),
        "second": np.array([1]),
        "spread": np.array([1, 2]),
        **(more or {}),
    }
    make = helper.make_node
    nodes = [make("Gather", ["tokens", "input_ids"], ["x"])]
    for name in "qkv":
        nodes += [
            make("MatMul", ["x", name], [f"{name}.flat"]),
            make("Reshape", [f"{name}.flat", "split"], [f"{name}.split"]),
            make("Transpose", [f"{name}.split"], [f"{name}.turned"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        *mask,
        make("Attention", ["q.turned", "k.turned", "v.turned", "mask"], ["seen"]),
        make("Transpose", ["seen"], ["seen.turned"], perm=[0, 2, 1, 3]),
        make("Reshape", ["seen.turned", "join"], ["states"]),
        make("Gather", ["states", "first"], ["logits"], axis=1),
    ]
    value, sizes = helper.make_tensor_value_info, ["rows", "tokens"]
    inputs = [value(name, TensorProto.INT64, sizes) for name in ("input_ids", "attention_mask")]
    outputs = [value("logits", TensorProto.FLOAT, ["rows", WIDTH])]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def spread(name: str, to: str) -> list[onnx.NodeProto]:
    """Nodes that give each token of a row a copy of the row's (rows, tokens): (rows, 1, tokens, tokens)."""
    make = helper.make_node
    return [
        make("Cast", [name], ["real"], to=TensorProto.BOOL),
        make("Unsqueeze", ["real", "spread"], ["unspread"]),
        make("Shape", ["input_ids"], ["size.rows"], start=0, end=1),
        make("Shape", ["input_ids"], ["sizes"], start=1, end=2),
        make("Concat", ["size.rows", "second", "sizes", "sizes"], ["size.mask"], axis=0),
        make("Expand", ["unspread", "size.mask"], [to]),
    ]


PADDING = spread("attention_mask", "mask")


def logits(model: onnx.ModelProto) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.arange(18).reshape(3, 6)
    return session.run(None, {"input_ids": ids, "attention_mask": (np.arange(6) < [[6], [4], [1]]).astype(np.int64)})[0]


def changed(model: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    assert take_lengths(other) == 1
    onnx.checker.check_model(other, full_check=True)
    return other


def test_a_mask_of_padding_becomes_the_number_of_each_rows_tokens() -> None:
    model = encoder(*PADDING)
    other = changed(model)
    node = next(each for each in other.graph.node if each.op_type == "Attention")
    assert [bool(name) for name in node.input] == [True, True, True, False, False, False, True]
    assert [each.version for each in other.opset_import] == [24]
    np.testing.assert_allclose(logits(other), logits(model), atol=1e-6)


def test_the_logits_are_not_numbers_where_lengths_are_ignored() -> None:
    """As ONNX Runtime 1.24 ignores them. Here the trial's length shows both keys."""
    other = changed(encoder(*PADDING))
    assert np.isfinite(logits(other)).all()
    (length,) = (each for each in other.graph.initializer if each.name.endswith("trial.length"))
    length.CopyFrom(numpy_helper.from_array(np.array([2]), length.name))
    assert np.isnan(logits(other)).all()


def test_heads_that_only_attention_needs_apart_stay_side_by_side() -> None:
    kinds = [node.op_type for node in changed(encoder(*PADDING)).graph.node]
    assert not {"Transpose", "Reshape", "Unsqueeze"} & set(kinds)


def test_a_mask_stays_if_something_else_needs_the_heads_apart() -> None:
    model = encoder(*PADDING)
    model.graph.node.append(helper.make_node("Relu", ["seen"], ["also"]))
    model.graph.output.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, ["rows", HEADS, "tokens", 4]))
    before = model.SerializeToString(deterministic=True)
    assert take_lengths(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_rotations_take_joined_heads_too() -> None:
    model = encoder(*PADDING)
    make, draw = helper.make_node, np.random.default_rng(1)
    for name in ("cosines", "sines"):
        table = draw.normal(size=(1, 6, WIDTH // HEADS // 2)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(table, name))
    at = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Attention")
    attention = model.graph.node[at]
    for place, name in enumerate(attention.input[:2]):
        caches = []
        for cache in ("cosines", "sines"):
            shape = f"{name}.{cache}.shape"
            model.graph.node.insert(at, make("Expand", [cache, shape], [f"{name}.{cache}"]))
            model.graph.node.insert(at, make("Concat", [f"{shape}.rows", "second", "second"], [shape], axis=0))
            model.graph.node.insert(at, make("Shape", [name], [f"{shape}.rows"], start=0, end=1))
            caches.append(f"{name}.{cache}")
            at += 3
        model.graph.node.insert(at, make("RotaryEmbedding", [name, *caches], [f"{name}.rotated"]))
        at += 1
        attention.input[place] = f"{name}.rotated"
    model = onnx.shape_inference.infer_shapes(model)
    other = changed(model)
    assert not {"Transpose", "Reshape"} & {node.op_type for node in other.graph.node}
    np.testing.assert_allclose(logits(other), logits(model), atol=1e-6)


def test_a_mask_that_is_added_to_the_scores_counts_too() -> None:
    numbers = {"zero": np.float32(0), "lowest": np.float32(np.finfo(np.float32).min)}
    where = helper.make_node("Where", ["is_real", "zero", "lowest"], ["mask"])
    added = (*spread("attention_mask", "is_real"), where)
    model = encoder(*added, more=numbers)
    np.testing.assert_allclose(logits(changed(model)), logits(model), atol=1e-6)


def _window(tokens: int) -> tuple[tuple[onnx.NodeProto, ...], dict[str, Any]]:
    make = helper.make_node
    nodes = (
        *spread("attention_mask", "is_real"),
        make("Squeeze", ["sizes"], ["size"]),
        make("Range", ["first", "size", "one"], ["columns"]),
        make("Unsqueeze", ["columns", "second"], ["rows"]),
        make("Sub", ["rows", "columns"], ["distance"]),
        make("Abs", ["distance"], ["far"]),
        make("LessOrEqual", ["far", "reach"], ["is_near"]),
        make("And", ["is_real", "is_near"], ["mask"]),
    )
    return nodes, {"reach": np.array(tokens)}


@pytest.mark.parametrize("tokens", [2, 40, 2000, 2048, 3000])
def test_a_mask_with_a_window_stays(tokens: int) -> None:
    nodes, more = _window(tokens)
    model = encoder(*nodes, more=more)
    before = model.SerializeToString(deterministic=True)
    assert take_lengths(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_a_mask_that_depends_on_the_tokens_stays() -> None:
    assert take_lengths(encoder(*spread("input_ids", "mask"))) == 0
