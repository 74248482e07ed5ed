"""Lets an encoder's attention take how many tokens each row has, in the place of a mask.

Padding is on the right, so that the number of a row's tokens says all that its mask of padding says. A graph then makes
no mask of tokens times tokens, and kernels have faster forms, such as flash attention on CUDA, which take none. The
operator Attention takes these numbers from opset 24 on.

ONNX Runtime reads them from 1.25 on. 1.23 does not load such a graph, and 1.24 loads it and ignores them without an
error. A graph therefore tries it on a constant: where they are ignored, its logits are not numbers, and no server takes
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,
    RuntimeException,
)

from rewardloop_trainer.export.attention.joined_heads import join_heads
from rewardloop_trainer.export.attention.steps import needed

OPSET = 24  # the first in which Attention takes the number of keys
_LENGTHS = "rewardloop.lengths"
_MASK_INPUT, _LENGTHS_INPUT = 3, 6  # of Attention
# Tokens of rows for which a mask is compared with that of padding. A window that is wider than the last is not seen.
_SIZES = (5, 33, 4096)
_ORT_FATAL = 4
_HIDDEN = -1e4  # a mask that is added to scores hides a token at this value or below


def take_lengths(graph: onnx.ModelProto) -> int:
    """Let attention whose mask hides only the padding take the numbers of tokens instead, in place.

    Attention with another mask, such as that of a window, keeps it. A mask is computed for several lengths and
    compared, so that it does not matter how a model makes it. All keep their masks if the heads of one cannot stay side
    by side (`joined_heads`): it would need Reshape and Transpose of opset 24, of which ONNX Runtime's CUDA provider had
    no kernels when it had those of Attention (https://github.com/microsoft/onnxruntime/pull/28368), and each would cost
    a copy to the CPU and back.

    Args:
        graph: An encoder's graph, which takes ``attention_mask``.

    Returns:
        How many nodes were changed. With 0 the graph is as it was.
    """
    body = graph.graph
    masked = [node for node in body.node if node.op_type == "Attention" and _has_simple_mask(node)]
    padding = {name for name in {node.input[_MASK_INPUT] for node in masked} if _hides_padding(graph, name)}
    changed = [node for node in masked if node.input[_MASK_INPUT] in padding]
    if not changed or not join_heads(body, changed):
        return 0
    for node in changed:
        del node.input[_MASK_INPUT:]
        node.input.extend([""] * (_LENGTHS_INPUT - _MASK_INPUT) + [_LENGTHS])
    axes = helper.make_node("Constant", [], [f"{_LENGTHS}.axes"], value_ints=[1])
    count = helper.make_node("ReduceSum", ["attention_mask", f"{_LENGTHS}.axes"], [_LENGTHS], keepdims=0)
    nodes = [axes, count, *body.node]
    del body.node[:]
    body.node.extend(needed(nodes, {output.name for output in body.output}))
    _try_lengths(body)
    (default,) = (each for each in graph.opset_import if each.domain in ("", "ai.onnx"))
    default.version = max(default.version, OPSET)
    return len(changed)


def _try_lengths(body: onnx.GraphProto) -> None:
    """Add 0 to the logits, or what is not a number if attention over two keys of which one is real sees both.

    What is added is a constant, which ONNX Runtime computes when it loads the graph.
    """
    for node in body.node:
        node.output[:] = [f"{_LENGTHS}.logits" if name == "logits" else name for name in node.output]
    keys, values = np.zeros((1, 1, 2, 1), dtype=np.float32), np.array([0, 1], dtype=np.float32).reshape(1, 1, 2, 1)
    constants: dict[str, npt.NDArray[Any]] = {
        "query": keys[:, :, :1],
        "keys": keys,
        "values": values,
        "length": np.array([1], dtype=np.int64),
    }
    inputs = {name: f"{_LENGTHS}.trial.{name}" for name in constants}
    body.initializer.extend(numpy_helper.from_array(constants[name], inputs[name]) for name in constants)
    seen, below, root, zero = (f"{_LENGTHS}.trial.{name}" for name in ("seen", "below", "root", "zero"))
    tried = [inputs["query"], inputs["keys"], inputs["values"], "", "", "", inputs["length"]]
    body.node.extend(
        [
            helper.make_node("Attention", tried, [seen]),
            helper.make_node("Neg", [seen], [below]),
            helper.make_node("Sqrt", [below], [root]),  # of -0.5 if the second value was seen
            helper.make_node("Squeeze", [root], [zero]),
            helper.make_node("Add", [f"{_LENGTHS}.logits", zero], ["logits"]),
        ]
    )


def _has_simple_mask(node: onnx.NodeProto) -> bool:
    return len(node.input) == _MASK_INPUT + 1 and bool(node.input[_MASK_INPUT]) and sum(map(bool, node.output)) == 1


def _hides_padding(graph: onnx.ModelProto, mask: str) -> bool:
    """Whether every real token sees exactly the real tokens of its row by this mask."""
    nodes = _makers(graph.graph, mask)
    if nodes is None:
        return False
    made = helper.make_graph(nodes, "mask", [], [onnx.ValueInfoProto(name=mask)])
    read = {name for node in nodes for name in node.input}
    made.input.extend(given for given in graph.graph.input if given.name in read)
    made.initializer.extend(held for held in graph.graph.initializer if held.name in read)
    model = helper.make_model(made, opset_imports=graph.opset_import, ir_version=graph.ir_version)
    names = [given.name for given in made.input]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ORT_FATAL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return all(
            _is_of_padding(session.run([mask], dict.fromkeys(names, _mask(lengths, size)))[0], lengths, size)
            for size in _SIZES
            for lengths in ([size, size // 2, 1] if size < _SIZES[-1] else [size - 1],)
        )
    except (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException):
        return False  # what cannot be compared stays a mask


def _mask(lengths: Sequence[int], size: int) -> npt.NDArray[np.int64]:
    return (np.arange(size) < np.array(lengths)[:, None]).astype(np.int64)


def _is_of_padding(found: npt.NDArray[Any], lengths: Sequence[int], size: int) -> bool:
    """Whether a mask, which broadcasts to (rows, heads, tokens, tokens), is that of rows of these lengths."""
    if found.dtype != np.bool_ and not ((found == 0) | (found <= _HIDDEN)).all():
        return False
    shown = found if found.dtype == np.bool_ else found == 0
    if (
        shown.ndim != 4
        or len(shown) not in (1, len(lengths))
        or shown.shape[2] not in (1, size)
        or shown.shape[3] != size
    ):
        return False
    is_real = np.arange(size) < np.array(lengths)[:, None]
    shown = np.broadcast_to(shown, (len(lengths), *shown.shape[1:]))
    return all((row[:, :length] == real).all() for row, length, real in zip(shown, lengths, is_real, strict=True))


def _makers(body: onnx.GraphProto, mask: str) -> list[onnx.NodeProto] | None:
    """The nodes that make a mask; None if it depends on more than ``attention_mask`` and the size of the inputs."""
    makers = {name: node for node in body.node for name in node.output}
    values = {held.name for held in body.initializer if held.data_location != TensorProto.EXTERNAL}
    given = {each.name for each in body.input}
    found: dict[int, onnx.NodeProto] = {}
    waiting = [mask]
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or id(node) in found:
            continue
        found[id(node)] = node
        for name in filter(None, node.input):
            is_size = node.op_type == "Shape" and name in given
            if name not in makers and name not in values and name != "attention_mask" and not is_size:
                return None
            waiting.append(name)
    return [node for node in body.node if id(node) in found] or None
