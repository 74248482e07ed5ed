"""Gives linear layers of a graph the inputs through which a version's adapter reaches them.

A linear layer then computes ``x @ W + (x @ A) @ B``. A and B are graph inputs with default initialisers of rank 0, so
that a graph without an adapter computes what it computed before. The score heads' weight and bias become inputs too.

The inputs cost this much time, as a ratio to the graph without them, without an adapter and with one of rank 8: query
and value 0.99 to 1.02 and 1.00 to 1.04; all of the attention 1.00 to 1.04 and 1.01 to 1.02; all linear layers 1.02 to
1.06 and 1.04 to 1.06. Measured by `python tests/bench/adapter_cost.py` on a 6 x 384 encoder and an 8 x 512 decoder with
1 x 64 and 8 x 128 tokens on one thread, where the noise is about 0.02.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rewardloop_trainer.export.errors import NoAdapterInputs
from rewardloop_trainer.export.weights import Graph

Places: TypeAlias = dict[str, list[tuple[str, bool]]]

HEADS_WEIGHT, HEADS_BIAS = "heads.weight", "heads.bias"
_PREFIX = "lora."


def input_names(module: str) -> tuple[str, str]:
    """Names of the inputs A (d_in, rank) and B (rank, d_out) of the linear layer at this path in the trunk."""
    return f"{_PREFIX}{module}.A", f"{_PREFIX}{module}.B"


def adapted_modules(path: Path) -> frozenset[str]:
    """Paths in the trunk of the linear layers for which the graph at ``path`` takes an adapter."""
    names = {i.name for i in onnx.load_model(str(path), load_external_data=False).graph.input}
    ends = {n.removeprefix(_PREFIX).removesuffix(".A") for n in names if n.startswith(_PREFIX) and n.endswith(".A")}
    return frozenset(m for m in ends if set(input_names(m)) <= names) if HEADS_WEIGHT in names else frozenset()


def add_adapter_inputs(whole: Graph, places: Places, modules: Sequence[str]) -> Places:
    """Give the layers and the heads their inputs, in place.

    Args:
        whole: The graph to change.
        places: The initialisers that hold each parameter, and whether transposed.
        modules: Paths in the trunk of the layers.

    Returns:
        The places after the change, which renames the initialisers of the heads.

    Raises:
        NoAdapterInputs: If a layer or the heads cannot have inputs in this graph.
    """
    if not modules:
        return places
    graph = whole.proto
    sizes = {i.name: tuple(i.dims) for i in graph.graph.initializer}
    followers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            followers.setdefault(name, []).append(node)
    added: dict[str, list[onnx.NodeProto]] = {}  # by the output of the node that they follow
    for module in modules:
        if not places[f"trunk.{module}.weight"]:
            raise NoAdapterInputs(f"the graph does not hold the weight of {module}")
        for name, _ in places[f"trunk.{module}.weight"]:
            for node in followers.get(name, ()):
                _adapt(graph, node, module, _width(node, sizes[name]), followers, added)
    nodes = [part for node in graph.graph.node for part in (node, *added.pop(node.output[0], ()))]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return _expose_heads(whole, places)


def _adapt(
    graph: onnx.ModelProto,
    node: onnx.NodeProto,
    module: str,
    width: tuple[int, int],
    followers: Mapping[str, list[onnx.NodeProto]],
    added: dict[str, list[onnx.NodeProto]],
) -> None:
    """Add the product with the adapter to the layer of ``node``, whose ``width`` is (d_in, d_out)."""
    a, b = input_names(module)
    known = {i.name for i in graph.graph.input}
    if a not in known:  # a layer that is used twice has one adapter
        _add_input(graph, np.zeros((width[0], 0), dtype=np.float32), a, (width[0], f"{module}.rank"))
        _add_input(graph, np.zeros((0, width[1]), dtype=np.float32), b, (f"{module}.rank", width[1]))
    last = node
    after = followers.get(node.output[0], [])
    if node.op_type == "MatMul" and len(after) == 1 and after[0].op_type == "Add":
        last = after[0]  # the bias stays next to the product, so that the runtime can fuse them
    output = last.output[0]
    base, low, delta = f"{output}.base", f"{output}.low", f"{output}.delta"
    last.output[0] = base
    added[base] = [
        helper.make_node("MatMul", [node.input[0], a], [low], name=f"{_PREFIX}{output}.A"),
        helper.make_node("MatMul", [low, b], [delta], name=f"{_PREFIX}{output}.B"),
        helper.make_node("Add", [base, delta], [output], name=f"{_PREFIX}{output}.add"),
    ]


def _width(node: onnx.NodeProto, shape: tuple[int, ...]) -> tuple[int, int]:
    is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
    if node.op_type not in ("MatMul", "Gemm") or len(shape) != 2:
        raise NoAdapterInputs(f"a linear layer was exported as {node.op_type} with weights of shape {shape}")
    return (shape[1], shape[0]) if is_transposed else (shape[0], shape[1])


def _expose_heads(graph: Graph, places: Places) -> Places:
    (weight, is_transposed), *others = places[HEADS_WEIGHT]
    ((bias, _),) = places[HEADS_BIAS]
    if others or is_transposed:
        raise NoAdapterInputs("the graph holds the weight of the score heads transposed or more than once")
    graph.rename({weight: HEADS_WEIGHT, bias: HEADS_BIAS})
    for initialiser in graph.proto.graph.initializer:
        if initialiser.name in (HEADS_WEIGHT, HEADS_BIAS):
            value: Any = helper.make_tensor_value_info(initialiser.name, TensorProto.FLOAT, list(initialiser.dims))
            graph.proto.graph.input.append(value)
    return {**places, HEADS_WEIGHT: [(HEADS_WEIGHT, False)], HEADS_BIAS: [(HEADS_BIAS, False)]}


def _add_input(graph: onnx.ModelProto, default: Any, name: str, shape: tuple[int | str, ...]) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(default, name))
    graph.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
