"""What a graph may ask for is decided from its bytes, before ONNX Runtime opens anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.reward_graphs import write_sum_graph

from rewardloop.formats.graphs.check import EndlessGraph, check_graph, external_files
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


def trips(number: int | None, *, place: str = "initializer") -> onnx.ModelProto:
    """A graph with a loop, whose number of trips is a constant in such a place, or is computed."""
    value = helper.make_tensor_value_info
    inputs = [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("at", TensorProto.FLOAT, [1])]
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_next"]) for name in ("on", "at")],
        "body",
        inputs,
        [value("on_next", TensorProto.BOOL, []), value("at_next", TensorProto.FLOAT, [1])],
    )
    name = "" if number is None else "trips"
    nodes = [helper.make_node("Loop", [name, "go", "x"], ["y"], body=body)]
    initializers = [numpy_helper.from_array(np.array(True), "go")]
    inputs = [value("x", TensorProto.FLOAT, [1])]
    if number is not None:
        tensor = numpy_helper.from_array(np.array(number, dtype=np.int64), "trips")
        if place == "constant":
            nodes.insert(0, helper.make_node("Constant", [], ["trips"], value=tensor))
        elif place == "computed":
            tensor.name = "some"
            initializers.append(tensor)
            nodes.insert(0, helper.make_node("Neg", ["some"], ["trips"]))
        else:
            initializers.append(tensor)
        if place == "settable":
            inputs.append(value("trips", TensorProto.INT64, []))
        if place == "name of another graph":
            initializers.pop()
            nodes.insert(0, helper.make_node("Neg", ["x"], ["trips"]))
            branch = helper.make_graph([], "branch", [], [value("trips", TensorProto.INT64, [])], [tensor])
            nodes.insert(0, helper.make_node("If", ["go"], ["z"], then_branch=branch, else_branch=branch))
    graph = helper.make_graph(nodes, "loops", inputs, [value("y", TensorProto.FLOAT, [1])], initializers)
    return helper.make_model(graph)


@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_loop_with_a_constant_number_of_trips_is_taken(tmp_path: Path, place: str) -> None:
    check(trips(65_536, place=place), tmp_path)


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (None, ""),
        (65_537, "initializer"),
        (-1, "constant"),
        (3, "computed"),
        (3, "settable"),
        (3, "name of another graph"),
    ],
)
def test_endless_loop_is_refused_unless_allowed(tmp_path: Path, number: int | None, place: str) -> None:
    model = trips(number, place=place)
    with pytest.raises(EndlessGraph, match="'Loop'"):
        check(model, tmp_path)
    check_graph(tmp_path / "model.onnx", OWN, "reward 1", allows_loops=True)


def test_operator_that_samples_by_itself_is_a_loop(graph: onnx.ModelProto, tmp_path: Path) -> None:
    graph.graph.node.append(helper.make_node("BeamSearch", ["x"], ["y"], domain="com.microsoft"))
    with pytest.raises(EndlessGraph, match="'BeamSearch'"):
        check(graph, tmp_path)


@pytest.mark.parametrize(("field", "said"), [(b"\x0a\x00", "nodes"), (b"\x6a\x00", "parts")])
def test_graph_of_millions_of_empty_parts_is_refused_early(tmp_path: Path, field: bytes, said: str) -> None:
    inner_graph = field * 1_200_000
    length = len(inner_graph)
    size = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21])
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + size + inner_graph)
    with pytest.raises(NotAGraph, match=f"it has more than .*{said}"):
        check_graph(tmp_path / "model.onnx", OWN, "reward 1")
