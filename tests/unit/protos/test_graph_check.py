"""What a graph may ask for is decided from its bytes, before ONNX Runtime opens anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.reward_graphs import write_sum_graph

from rewardloop.formats.graphs.check import check_graph, external_files
from rewardloop.formats.graphs.fields import NotAGraph
from rewardloop.formats.store_errors import UnsafeVersion

OWN = {"model.onnx": "0" * 64, "weights.data": "0" * 64, "parts/more.data": "0" * 64}


@pytest.fixture
def graph(tmp_path: Path) -> onnx.ModelProto:
    write_sum_graph(tmp_path / "sum.onnx")
    return onnx.load(tmp_path / "sum.onnx")


def check(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    check_graph(path, OWN, "reward 1")


def external(location: str, name: str = "outside") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def inner(tensor: TensorProto | None = None, node: onnx.NodeProto | None = None) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_graph([node] if node else [], "inner", [], [output], [tensor] if tensor else [])


def custom(domain: str = "evil.example", operator: str = "Run") -> onnx.NodeProto:
    return helper.make_node(operator, ["x"], ["y"], domain=domain)


# Where a tensor may be in a model.
PLACES: dict[str, Callable[[onnx.GraphProto, TensorProto], object]] = {
    "initializer": lambda graph, tensor: graph.initializer.append(tensor),
    "sparse": lambda graph, tensor: graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=tensor, indices=numpy_helper.from_array(np.array([0])), dims=[1])
    ),
    "constant": lambda graph, tensor: graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor)),
    "branch": lambda graph, tensor: graph.node.append(
        helper.make_node("If", ["b"], ["z"], then_branch=inner(tensor), else_branch=inner())
    ),
    "branch of a branch": lambda graph, tensor: graph.node.append(
        helper.make_node(
            "If",
            ["b"],
            ["z"],
            then_branch=inner(),
            else_branch=inner(
                node=helper.make_node("If", ["b"], ["y"], then_branch=inner(tensor), else_branch=inner())
            ),
        )
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../1/weights.data", "parts/../../x", "*/_ORT_MEM_ADDR_/*", "strange.data", "", "C:\\x", "a\0b"],
)
def test_tensor_outside_of_the_version_is_refused(graph, tmp_path, place: str, location: str) -> None:
    PLACES[place](graph.graph, external(location))
    with pytest.raises(UnsafeVersion, match="not the version's own"):
        check(graph, tmp_path)


@pytest.mark.parametrize("place", PLACES)
def test_tensor_in_a_file_of_the_version_is_taken(graph, tmp_path, place: str) -> None:
    for location in ("weights.data", "./weights.data", "parts/more.data"):
        PLACES[place](graph.graph, external(location))
    check(graph, tmp_path)
    assert external_files(tmp_path / "model.onnx") == {"weights.data", "./weights.data", "parts/more.data"}


def test_location_is_looked_at_whatever_the_tensor_says_of_itself(graph, tmp_path) -> None:
    tensor = external("/etc/passwd")
    tensor.data_location = TensorProto.DEFAULT
    graph.graph.initializer.append(tensor)
    with pytest.raises(UnsafeVersion):
        check(graph, tmp_path)


@pytest.mark.parametrize(
    "add",
    [
        lambda model: model.graph.node.append(custom()),
        lambda model: model.graph.node.append(custom("com.microsoft", "EPContext")),
        lambda model: model.graph.node.append(custom("", "EPContext")),
        lambda model: model.graph.node.append(custom("com.microsoft.extensions", "PyOp")),
        lambda model: model.graph.node.append(
            helper.make_node("If", ["b"], ["z"], then_branch=inner(node=custom()), else_branch=inner())
        ),
        lambda model: model.functions.append(
            helper.make_function("local", "f", ["x"], ["y"], [custom()], [helper.make_opsetid("", 18)])
        ),
    ],
    ids=["custom", "compiled", "compiled, standard", "extension", "in a branch", "in a function"],
)
def test_operator_of_somebody_elses_is_refused(graph, tmp_path, add: Callable[[onnx.ModelProto], None]) -> None:
    add(graph)
    with pytest.raises(UnsafeVersion, match="operators that are not allowed"):
        check(graph, tmp_path)


def test_known_operators_and_the_models_own_functions_are_taken(graph, tmp_path) -> None:
    opset = [helper.make_opsetid("", 18)]
    body = helper.make_node("Relu", ["x"], ["y"])
    graph.functions.append(helper.make_function("local", "f", ["x"], ["y"], [body], opset))
    graph.graph.node.extend(
        [custom("local", "f"), custom("com.microsoft", "MatMulNBits"), custom("ai.onnx.ml", "Scaler")]
    )
    check(graph, tmp_path)


def test_what_is_no_model_is_not_a_graph(graph, tmp_path) -> None:
    path = tmp_path / "model.onnx"
    whole = graph.SerializeToString()
    for data in (
        b"",
        b"no graph",
        b"\xff" * 100,
        whole[:-3],
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x3b\x3c",
    ):
        path.write_bytes(data)
        with pytest.raises(NotAGraph):
            check_graph(path, OWN, "reward 1")


def test_endless_nesting_is_not_a_graph(tmp_path) -> None:
    def field(number: int, data: bytes) -> bytes:
        size = len(data)
        assert size < 2**14
        return bytes([number << 3 | 2, size & 127 | 128, size >> 7]) + data

    graph = b""
    for _ in range(100):
        graph = field(1, field(5, field(6, graph)))  # of a graph a node, of that an attribute, of that a graph
    path = tmp_path / "model.onnx"
    path.write_bytes(field(7, graph))
    with pytest.raises(NotAGraph, match="nested"):
        check_graph(path, OWN, "reward 1")
