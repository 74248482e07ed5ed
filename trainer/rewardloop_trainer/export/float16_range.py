"""Shows whether the activations of a graph keep within the range of float16.

Margins that were computed on a CPU do not show it. ONNX Runtime runs most operators there in float32 and rounds where
it must, while CUDA holds every tensor of a float16 graph in float16, in which a value above 65,504 is infinite. So the
float32 graph is run, and the largest magnitude is taken of each tensor that the converted graph holds in float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rewardloop.formats.text import Encoded
from rewardloop_trainer.export.feeds import similar_batches
from rewardloop_trainer.export.parity import graph_feeds, open_changed

LARGEST = float(np.finfo(np.float16).max)
_MAGNITUDES = "float16.magnitudes"
# A mask that is added to scores is filled with float32's lowest value. In float16 it is the lowest there or minus
# infinity, which hide as well.
_FILLING = 1e30


def float16_range(
    float32: Path, converted: Path, sequences: Sequence[Encoded], pad: int, adapter: Path | None = None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Compare the activations of a graph with what float16 can hold.

    Args:
        float32: The graph's file before the conversion.
        converted: Its file in float16, which names the same tensors alike.
        sequences: Sequences such as the graph will score.
        pad: Token id of padding.
        adapter: A delta's adapter file, which the graph runs with.

    Returns:
        Figures for the manifest, and a reason against the conversion if a tensor exceeds the range.
    """
    names = _halved(float32, converted)
    if not names:
        return {}, ("no tensor of it is in float16",)
    session = open_changed(_with_magnitudes(float32, names), float32, adapter)
    found = np.zeros(len(names))
    for batch in similar_batches(sequences):
        feeds = graph_feeds(session, [sequences[i] for i in batch], pad)
        found = np.maximum(found, session.run([_MAGNITUDES], feeds)[0])
    widest = int(found.argmax())
    figures = {"precision_largest_activation": float(found[widest])}
    if found[widest] <= LARGEST:
        return figures, ()
    value = f"{found[widest]:.6g} on held-out pairs"
    return figures, (f"the tensor {names[widest]!r} reaches {value}, beyond the {LARGEST:.0f} of float16",)


def _halved(float32: Path, converted: Path) -> list[str]:
    """Names of the tensors that are float32 in the one graph, and float16, or of a type not known, in the other."""
    before, after = _types(float32), _types(converted)
    other = (TensorProto.FLOAT16, TensorProto.UNDEFINED)
    return [name for name, kind in before.items() if kind == TensorProto.FLOAT and after.get(name) in other]


def _types(path: Path) -> dict[str, int]:
    """The element type of each tensor that a node makes, those in the branches of an If excepted."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_model(str(path), load_external_data=False)).graph
    known = {each.name: each.type.tensor_type.elem_type for each in (*graph.value_info, *graph.output)}
    made = (name for node in graph.node for name in node.output if name)
    return {name: known.get(name, TensorProto.UNDEFINED) for name in made}


def _with_magnitudes(path: Path, names: Sequence[str]) -> onnx.ModelProto:
    """The graph with one more output, (names,): the largest magnitude of each of these tensors."""
    model = onnx.load_model(str(path), load_external_data=False)
    graph = model.graph
    constants = {"filling": np.float32(_FILLING), "zero": np.float32(0), "line": np.array([-1], dtype=np.int64)}
    held = {name: f"float16.{name}" for name in constants}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), held[name]) for name, v in constants.items())
    for name in names:
        size, is_real, real, largest = (f"float16.{name}.{part}" for part in ("size", "is_real", "real", "largest"))
        graph.node.extend(
            [
                helper.make_node("Abs", [name], [size]),
                helper.make_node("Less", [size, held["filling"]], [is_real]),
                helper.make_node("Where", [is_real, size, held["zero"]], [real]),
                helper.make_node("ReduceMax", [real], [largest], keepdims=0),
                helper.make_node("Reshape", [largest, held["line"]], [f"{largest}.line"]),
            ]
        )
    lines = [f"float16.{name}.largest.line" for name in names]
    graph.node.append(helper.make_node("Concat", lines, [_MAGNITUDES], axis=0))
    graph.output.append(helper.make_tensor_value_info(_MAGNITUDES, TensorProto.FLOAT, [len(names)]))
    return model
