"""Converts a graph to float16, for CUDA. Inputs, outputs, the heads and adapter inputs keep their types."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from rewardloop_trainer.export.quantize import outside_trunk

# Squares and sums over many elements exceed float16's range; sines of large positions exceed its precision.
_FLOAT32_OPERATORS = ("Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Cos", "Sin")


def to_float16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the graph in place and return it. Raises ValueError on an empty graph."""
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
    converted: onnx.ModelProto = convert_float_to_float16(
        graph,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT32_OPERATORS],
        node_block_list=blocked,
    )
    converted.graph.input.extend(settable)
    return converted
