"""Converts a graph to half precision. Inputs, outputs, the heads and adapter inputs keep their types.

In float16 the graph also computes in float16, which suits CUDA. Products with adapter inputs, angles of positions, and
all that follows the trunk are computed in float32, and nothing between two of them is rounded.

In bfloat16 the trunk's matrices are stored, and each is cast to float32 before it is used. So scores are those of the
float32 graph with the rounded weights: exactly its own scores if the checkpoint was stored in bfloat16.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper
from onnxruntime.transformers.float16 import (
    DEFAULT_OP_BLOCK_LIST,
    convert_float_to_float16,
    convert_np_to_float16,
)

from rewardloop_trainer.export.quantize import outside_trunk
from rewardloop_trainer.export.weights import Graph

# Squares and sums over many elements exceed float16's range; sines of large positions exceed its precision.
_FLOAT32_OPERATORS = ("Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Cos", "Sin")


def to_float16(whole: Graph) -> Graph:
    """Convert the graph in place and return it. Raises ValueError on an empty graph."""
    graph = whole.proto
    settable = [i for i in graph.graph.input if i.name in {w.name for w in graph.graph.initializer}]
    names = {i.name for i in settable}
    for index, node in enumerate(graph.graph.node):
        node.name = node.name or f"node_{index}"
    blocked = [n.name for n in graph.graph.node if names.intersection(n.input)]
    blocked += [*_before_angles(graph), *_after_trunk(graph)]
    # The converter would round values that come in through an input. It leaves initialisers of float32 nodes alone, so
    # adapter inputs are hidden from it and added back below.
    inputs = [i for i in graph.graph.input if i.name not in names]
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    whole.proto = onnx.shape_inference.infer_shapes(graph)
    # The converter asks for the values of an initialiser to tell its shape, and so each is shown to it as an empty one.
    sizes = {i.name: list(i.dims) for i in graph.graph.initializer if i.name in whole.weights}
    for initialiser in whole.proto.graph.initializer:
        if initialiser.name in sizes:
            initialiser.dims[:] = [0] * len(initialiser.dims)
            initialiser.data_location = TensorProto.DEFAULT
    whole.proto = convert_float_to_float16(
        whole.proto,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT32_OPERATORS],
        node_block_list=blocked,
    )
    del whole.proto.graph.value_info[:]  # which has the types of before
    _drop_roundings(whole.proto.graph, _float16_in(whole.proto))
    whole.proto.graph.input.extend(settable)
    halved = {i.name for i in whole.proto.graph.initializer if i.data_type == TensorProto.FLOAT16}
    for name, weight in tuple(whole.weights.items()):
        whole.replace(name, weight.mapped(_float16, np.dtype(np.float16)) if name in halved else weight)
    return whole


def to_bfloat16(whole: Graph) -> int:
    """Store the trunk's matrices in bfloat16, in place. Return how many there are."""
    graph = whole.proto.graph
    fixed = {i.name for i in graph.input} | outside_trunk(whole.proto)
    stored = {
        i.name
        for i in graph.initializer
        if i.data_type == TensorProto.FLOAT and len(i.dims) > 1 and i.name not in fixed
    } & whole.weights.keys()
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    for name in stored:
        whole.replace(name, whole.weights[name].mapped(lambda block: block.astype(bfloat16), bfloat16))
    nodes: list[NodeProto] = []
    casts: dict[str, NodeProto] = {}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in stored:
            # Only the rows that are looked up are cast, so that an embedding stays as it is stored.
            output = node.output[0]
            node.output[0] = f"{output}.stored"
            nodes += [node, helper.make_node("Cast", [f"{output}.stored"], [output], to=TensorProto.FLOAT)]
            continue
        for place, name in enumerate(node.input):
            if name not in stored:
                continue
            casts[name] = helper.make_node("Cast", [name], [f"{name}.float32"], to=TensorProto.FLOAT)
            node.input[place] = f"{name}.float32"
        nodes.append(node)
    del graph.node[:]
    # ONNX Runtime computes the input of a node last whose own node comes first in the list. So a weight is cast when it
    # is needed, and only one layer's weights are in memory in float32.
    graph.node.extend([*casts.values(), *nodes])
    return len(stored)


def _before_angles(graph: onnx.ModelProto) -> list[str]:
    """Names of the nodes that a cosine or sine depends on: a position's angle, which float16 would round by radians."""
    needed: set[str] = set()
    found = []
    for node in reversed(graph.graph.node):
        if node.op_type in ("Cos", "Sin") or needed.intersection(node.output):
            found.append(node.name)
            if node.op_type != "Shape":  # how many positions there are depends on no value of the trunk
                needed.update(node.input)
    return found


def _after_trunk(graph: onnx.ModelProto) -> list[str]:
    """Names of the nodes that score the pooled vector, and of those that follow them."""
    reached = outside_trunk(graph)
    found = []
    for node in graph.graph.node:  # which are sorted, so that what a node reads is made before it
        if reached.intersection(node.input):
            reached.update(node.output)
            found.append(node.name)
    return found


def _float16_in(graph: onnx.ModelProto) -> set[str]:
    """Names of the tensors between nodes that are known to be of float16."""
    known = onnx.shape_inference.infer_shapes(graph).graph.value_info
    return {value.name for value in known if value.type.tensor_type.elem_type == TensorProto.FLOAT16}


def _drop_roundings(graph: onnx.GraphProto, halved: set[str]) -> None:
    """Let float32 that is read as float32 stay so, where the converter rounds it to float16 on the way.

    ``halved`` has the names of tensors in float16. A cast of one of these is the model's own and rounds nothing. It
    stays, because ONNX Runtime's optimiser makes an invalid graph where a value is cast with it and beside it.
    """
    rounded = {
        n.output[0]: n.input[0] for n in graph.node if _is_cast(n, TensorProto.FLOAT16) and n.input[0] not in halved
    }
    for node in graph.node:
        if _is_cast(node, TensorProto.FLOAT):
            node.input[0] = rounded.get(node.input[0], node.input[0])
    read = _read(graph) | {output.name for output in graph.output}
    nodes = [n for n in graph.node if n.output[0] not in rounded or n.output[0] in read]
    del graph.node[:]
    graph.node.extend(nodes)


def _is_cast(node: NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == to for a in node.attribute)


def _read(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors that nodes read, those in the branches of an If included."""
    read = {name for node in graph.node for name in node.input}
    for attribute in (a for node in graph.node for a in node.attribute if a.type == AttributeProto.GRAPH):
        read |= _read(attribute.g) | {output.name for output in attribute.g.output}
    return read


def _float16(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    rounded: npt.NDArray[np.float16] = convert_np_to_float16(block)
    return rounded
