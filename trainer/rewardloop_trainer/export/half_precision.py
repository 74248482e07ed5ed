"""Converts a graph to half precision. Inputs, outputs, the heads and adapter inputs keep their types.

In float16 the graph also computes in float16, which suits CUDA. In bfloat16 the trunk's matrices are stored, and each
is cast to float32 before it is used. So scores are those of the float32 graph with the rounded weights: exactly its own
scores if the checkpoint was stored in bfloat16.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper
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
    fixed = names | outside_trunk(graph)
    for index, node in enumerate(graph.graph.node):
        node.name = node.name or f"node_{index}"
    blocked = [n.name for n in graph.graph.node if fixed.intersection(n.input)]
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
    whole.proto.graph.input.extend(settable)
    del whole.proto.graph.value_info[:]
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
    cast: set[str] = set()
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
            if name not in cast:
                cast.add(name)
                nodes.append(helper.make_node("Cast", [name], [f"{name}.float32"], to=TensorProto.FLOAT))
            node.input[place] = f"{name}.float32"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return len(stored)


def _float16(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    rounded: npt.NDArray[np.float16] = convert_np_to_float16(block)
    return rounded
