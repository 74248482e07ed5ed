"""Rewrites a graph so that its linear layers multiply 8-bit integers, for CPUs.

Each token has its own scale, so that its largest magnitude becomes 127. A score therefore depends neither on the other
rows of a batch nor on padding. ONNX Runtime's own dynamic quantization takes one scale for the whole batch; with it a
logit moved by 0.3 with the other rows.

A few channels hold large activations, which would cost the others their precision. So the inputs are divided by a
factor for each channel, and the weights are multiplied by it (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438).
Attention, norms, embeddings, the heads and the products of adapters stay in float32.

One layer is read, rounded and laid down in a file at a time, so that the memory that is needed does not grow with the
model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from rewardloop.formats.graphs.inputs import GraphInputs
from rewardloop_trainer.export.graph import PARAMETERS
from rewardloop_trainer.export.parity import open_changed
from rewardloop_trainer.export.weight_rounding import Floats, round_weights
from rewardloop_trainer.export.weights import Graph, Weight

MICROSOFT = "com.microsoft"
_SMALLEST = 32  # a narrower layer costs too little time to matter
_GRAM_WIDTH = 4096  # widest layer whose inputs' correlations are kept in memory
_GRAM_BYTES = 2**30  # of all correlations together
_SMOOTHING = 0.8
_GELU_FLOOR = 0.18  # the least value of Gelu is above -0.18


@dataclass(slots=True)
class InputStatistics:
    """Statistics of a layer's inputs X (tokens, k).

    Attributes:
        largest: (k,), the largest magnitude of each channel.
        gram: (k, k), X'X; None if the layer is too wide, or the layers before it take all memory that there is for it.
    """

    largest: Floats
    gram: npt.NDArray[np.float64] | None


def quantize(graph: Graph, path: Path, scratch: Path, calibration: Sequence[GraphInputs]) -> int:
    """Rewrite the graph in place.

    Args:
        graph: The float32 graph.
        path: The file that it was read from.
        scratch: A file to make, which holds integers until the graph is written.
        calibration: Inputs of the graph without padding, some 5,000 tokens of the kind that it will see. Without any,
            channels are not balanced and each weight is rounded to its nearest integer, which costs accuracy.

    Returns:
        The number of products that are now of integers.
    """
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in _products(graph.proto):
        consumers.setdefault(node.input[0], []).append(node)
    sizes = {i.name: i.dims for i in graph.proto.graph.initializer}
    widths = {name: _width(found[0], sizes) for name, found in consumers.items()}
    statistics = _statistics(path, widths, calibration) if calibration else {}
    producers = {name: node for node in graph.proto.graph.node for name in node.output}
    layers = {name: _Layer(name, found, producers.get(name), graph, scratch) for name, found in consumers.items()}
    nodes: list[onnx.NodeProto] = []
    begun = set()
    for node in graph.proto.graph.node:
        layer = layers.get(node.input[0]) if node.input else None
        if layer is None or not any(node is n for n in layer.nodes):
            nodes.append(node)
            continue
        if layer.name not in begun:
            begun.add(layer.name)
            nodes += layer.quantized_input(statistics.get(layer.name))
        nodes += layer.product(node, statistics.get(layer.name))
    del graph.proto.graph.node[:]
    graph.proto.graph.node.extend(nodes)
    graph.keep({name for node in nodes for name in node.input} | {i.name for i in graph.proto.graph.input})
    if layers and MICROSOFT not in {o.domain for o in graph.proto.opset_import}:
        graph.proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return sum(len(layer.nodes) for layer in layers.values())


class _Layer:
    """The matrix products that share one input."""

    def __init__(
        self,
        name: str,
        nodes: Sequence[onnx.NodeProto],
        producer: onnx.NodeProto | None,
        graph: Graph,
        scratch: Path,
    ) -> None:
        self.name = name
        self.nodes = nodes
        self._graph = graph
        self._scratch = scratch
        # A Gelu's output plus 0.18 is never negative, so that 7 bits and no sign represent it as well as 8 bits with a
        # sign. Activations below 128 then leave the weights their full range.
        self._is_raised = producer is not None and producer.op_type == "Gelu"
        self._factors: Floats | None = None

    def quantized_input(self, statistics: InputStatistics | None) -> list[onnx.NodeProto]:
        """The nodes that turn the shared input into integers and a scale for each token."""
        if statistics is not None:
            self._factors = _channel_factors(statistics.largest, (_matrix(n, self._graph) for n in self.nodes))
        name, nodes, current = self.name, list[onnx.NodeProto](), self.name

        def step(operator: str, *inputs: str, to: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(operator, inputs, [f"{name}.{to}"], **attributes))
            return f"{name}.{to}"

        if self._is_raised:
            floor = self._constant("floor", np.array(_GELU_FLOOR, dtype=np.float32))
            current = step("Add", current, floor, to="raised")
        if self._factors is not None:
            current = step("Mul", current, self._constant("balance", 1 / self._factors), to="balanced")
        last = self._constant("last_axis", np.array([-1], dtype=np.int64))
        largest = current if self._is_raised else step("Abs", current, to="magnitude")
        largest = step("ReduceMax", largest, last, to="range" if self._is_raised else "largest", keepdims=1)
        if not self._is_raised:
            largest = step("Max", largest, self._constant("least", np.array(1e-12, dtype=np.float32)), to="range")
        unit = step("Div", current, largest, to="unit")
        unit_step = self._constant("step", np.array(1 / 127, dtype=np.float32))
        zero = self._constant("zero", np.array(0 if self._is_raised else 128, dtype=np.uint8))
        step("QuantizeLinear", unit, unit_step, zero, to="integers")
        return nodes

    def product(self, node: onnx.NodeProto, statistics: InputStatistics | None) -> list[onnx.NodeProto]:
        """The nodes that replace ``node``: the product of integers, its scale, and its bias."""
        name, output = self.name, node.output[0]
        matrix = _matrix(node, self._graph)
        gram = None if statistics is None else statistics.gram
        factors = self._factors
        if factors is not None:
            matrix = matrix * factors[:, None]
            gram = None if gram is None else gram / np.outer(factors, factors)
        integers, steps = round_weights(matrix, gram, is_pair_limited=not self._is_raised)
        part = f"{output}.weight"
        inputs = [f"{name}.integers", self._constant(part, integers, whole=True), f"{name}.step"]
        inputs += [self._constant(f"{part}_steps", steps, whole=True), f"{name}.zero"]
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        sums = [*([f"{output}.floor"] if self._is_raised else []), *([bias] if bias else [])]
        stages = [f"{output}.unit", *(f"{output}.sum_{i}" for i in range(len(sums))), output]
        made = [
            helper.make_node("MatMulIntegerToFloat", inputs, [stages[0]], domain=MICROSOFT),
            helper.make_node("Mul", [stages[0], f"{name}.range"], [stages[1]]),
        ]
        if self._is_raised:
            floor = np.full(len(matrix), _GELU_FLOOR) if factors is None else _GELU_FLOOR / factors
            self._constant(f"{output}.floor", -(floor @ (integers * steps)).astype(np.float32), whole=True)
        made += [helper.make_node("Add", [stages[i + 1], s], [stages[i + 2]]) for i, s in enumerate(sums)]
        return made

    def _constant(self, name: str, value: npt.NDArray[Any], *, whole: bool = False) -> str:
        """Add an initialiser and return its name; without ``whole`` the layer's name is put before it."""
        name = name if whole else f"{self.name}.{name}"
        weight = Weight.of_array(value)
        if value.dtype == np.int8:
            with self._scratch.open("ab") as file:
                weight = Weight.of_file(self._scratch, file.tell(), value.shape, value.dtype)
                file.write(np.ascontiguousarray(value).data)
        self._graph.add(name, weight)
        return name


def _products(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The trunk's products with constant matrices that are wide enough to be worth converting."""
    weights = {i.name: i for i in graph.graph.initializer}
    kept = {i.name for i in graph.graph.input} | outside_trunk(graph)
    found = []
    for node in graph.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] in kept:
            continue
        weight = weights.get(node.input[1])
        if weight is None or len(weight.dims) != 2 or weight.data_type != TensorProto.FLOAT:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        is_plain = attributes.get("alpha", 1) == attributes.get("beta", 1) == 1 and not attributes.get("transA", 0)
        if min(weight.dims) >= _SMALLEST and is_plain:
            found.append(node)
    return found


def outside_trunk(graph: onnx.ModelProto) -> set[str]:
    """Names of the initialisers that score the pooled vector; empty if the graph does not name its parameters."""
    noted = {p.key: p.value for p in graph.metadata_props}.get(PARAMETERS, "{}")
    places: Mapping[str, Sequence[tuple[str, bool]]] = json.loads(noted)
    return {name for parameter, found in places.items() if not parameter.startswith("trunk.") for name, _ in found}


def _width(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]]) -> int:
    """The width k of a product's input."""
    return sizes[node.input[1]][1 if _is_turned(node) else 0]


def _is_turned(node: onnx.NodeProto) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)


def _matrix(node: onnx.NodeProto, graph: Graph) -> Floats:
    """The constant matrix of a product, (k, n)."""
    matrix: Floats = graph.values(node.input[1])
    return matrix.T if _is_turned(node) else matrix


def _channel_factors(largest: Floats, matrices: Iterable[Floats]) -> Floats:
    """The factor that each channel is divided by, (k,); the geometric mean is 1."""
    widest = np.full(len(largest), 1e-5, dtype=np.float32)
    for matrix in matrices:
        widest = np.maximum(widest, np.maximum(matrix.max(1), -matrix.min(1)))
    factors = np.maximum(largest, 1e-5) ** _SMOOTHING / widest ** (1 - _SMOOTHING)
    scaled: Floats = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return scaled


def _statistics(
    path: Path, widths: Mapping[str, int], calibration: Sequence[GraphInputs]
) -> dict[str, InputStatistics]:
    """Statistics of the named tensors over all tokens of the inputs, which must hold no padding."""
    probed = onnx.load_model(str(path), load_external_data=False)
    outputs = {o.name for o in probed.graph.output}
    probed.graph.output.extend(
        helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in widths if n not in outputs
    )
    session = open_changed(probed, path, threads=1)
    correlated = _correlated(widths)
    found: dict[str, InputStatistics] = {}
    for feeds in calibration:
        for name, value in zip(widths, session.run(list(widths), feeds), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            largest = np.abs(rows).max(0)
            gram = (rows.T @ rows).astype(np.float64) if name in correlated else None
            known = found.get(name)
            if known is None:
                found[name] = InputStatistics(largest, gram)
                continue
            known.largest = np.maximum(known.largest, largest)
            if gram is not None and known.gram is not None:
                known.gram += gram
    return found


def _correlated(widths: Mapping[str, int]) -> set[str]:
    """The tensors whose correlations are kept: the first ones that `_GRAM_BYTES` hold."""
    kept, room = set(), _GRAM_BYTES
    for name, width in widths.items():
        needed = 8 * width**2
        if width <= _GRAM_WIDTH and needed <= room:
            kept.add(name)
            room -= needed
    return kept
