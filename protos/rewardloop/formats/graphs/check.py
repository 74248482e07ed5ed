"""Checks a graph before ONNX Runtime reads it: it may ask only for files of its own version and known operators, and it
must end.

This is needed because ONNX Runtime opens any external file that a graph names, anywhere on the machine, and takes some
locations as addresses in memory. The file is walked as protobuf fields, so no onnx package is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from rewardloop.formats.graphs.fields import NotAGraph, fields, message, numbers, opened, text
from rewardloop.formats.store_errors import UnsafeVersion

# The domains of the operators that ONNX Runtime itself has. Others would come from a foreign library.
DOMAINS: Final = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
# Nodes that hold compiled code of a device, or name a file that holds it.
_REFUSED_OPERATORS: Final = frozenset(("EPContext",))

# Operators that run a graph of their own again and again. The last four are of "com.microsoft".
_LOOPS: Final = frozenset(("Loop", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"))
# A Loop may run so often. The exporters unroll nearly every loop, or bind it to a sequence (Scan).
_MOST_TRIPS = 65_536
# The largest decoders, exported without fused operators, have some ten thousand.
_MOST_NODES = 200_000
# Nodes, initializers, and descriptions of values: a few for each node.
_MOST_PARTS = 5 * _MOST_NODES

_DEEPEST = 32
_GRAPH, _FUNCTIONS = 7, 25  # of a model
_NODES, _INITIALIZERS, _GRAPH_INPUTS, _SPARSE_INITIALIZERS = 1, 5, 11, 15  # of a graph
_FUNCTION_NAME, _FUNCTION_INPUTS, _FUNCTION_NODES, _FUNCTION_DOMAIN = 1, 4, 7, 10
_INPUTS, _OUTPUTS, _OPERATOR, _ATTRIBUTES, _DOMAIN = 1, 2, 4, 5, 7  # of a node
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE, _SPARSES = 5, 6, 10, 11, 22, 23  # of an attribute
_VALUES, _INDICES = 1, 2  # of a sparse tensor
_DATA_TYPE, _INT64_DATA, _TENSOR_NAME, _RAW_DATA, _EXTERNAL_DATA = 2, 7, 8, 9, 13  # of a tensor
_INT64 = 7  # of the data types
_NAME = 1  # of a graph's input
_KEY, _VALUE = 1, 2  # of an entry of that


class EndlessGraph(NotAGraph):
    """Raised when nothing shows that the graph ends."""


def check_graph(path: Path, files: Mapping[str, str], where: str, *, allows_loops: bool = False) -> None:
    """Check the graph in the file at ``path``.

    Args:
        path: The ONNX file.
        files: The version's files, by their paths from its folder.
        where: The version's name, for error texts.
        allows_loops: Take loops that have no constant number of trips, too.

    Raises:
        UnsafeVersion: The graph asks for a file that is not in ``files``, or for an operator that ONNX Runtime
            does not have.
        EndlessGraph: The graph has a loop whose number of trips is not a constant of at most `_MOST_TRIPS`.
        NotAGraph: The file cannot be read, or has more than `_MOST_NODES` nodes, or one of its graphs has more than
            `_MOST_PARTS` parts.
    """
    asked = _asked_in(path)
    unknown = sorted(
        f"{domain}::{name}"
        for domain, name in asked.operators
        if (domain not in DOMAINS or name in _REFUSED_OPERATORS) and (domain, name) not in asked.functions
    )
    if unknown:
        raise UnsafeVersion(f"{where}: operators that are not allowed: {_shown(unknown)}")
    strangers = sorted(location for location in asked.locations if not _is_own(location, files))
    if strangers:
        raise UnsafeVersion(f"{where}: tensors in files that are not the version's own: {_shown(strangers)}")
    endless = sorted(
        operator
        for operator, trips in asked.loops
        if trips in asked.variable or not 0 <= asked.constants.get(trips, -1) <= _MOST_TRIPS
    )
    if endless and not allows_loops:
        raise EndlessGraph(
            f"nothing bounds its loops ({_shown(endless)}), which need a constant number of trips, at most "
            f"{_MOST_TRIPS}"
        )


def external_files(path: Path) -> frozenset[str]:
    """Return the locations of the files in which the graph at ``path`` has tensors. Raises `NotAGraph`."""
    return frozenset(_asked_in(path).locations)


@dataclass(slots=True)
class _Asked:
    """What a model's nodes and tensors name.

    Attributes:
        operators: Operators that nodes use, by domain and name.
        functions: Operators that the model defines itself, by domain and name.
        locations: External files.
        loops: Nodes that loop: the operator, and the name of the number of trips ("" if there is none).
        constants: Integers by the names under which nodes know them.
        variable: Names of values that are no constants, in any graph: inputs, and what other nodes give.
        nodes: How many nodes there are.
    """

    operators: set[tuple[str, str]] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    locations: set[str] = field(default_factory=set)
    loops: set[tuple[str, str]] = field(default_factory=set)
    constants: dict[str, int] = field(default_factory=dict)
    variable: set[str] = field(default_factory=set)
    nodes: int = 0


def _asked_in(path: Path) -> _Asked:
    asked = _Asked()
    _read_model(opened(path), asked)
    return asked


def _is_own(location: str, files: Mapping[str, str]) -> bool:
    path = PurePosixPath(location)
    return not path.is_absolute() and ".." not in path.parts and str(path) in files


def _shown(names: list[str]) -> str:
    return ", ".join(ascii(name)[:60] for name in names[:5])


def _read_model(data: memoryview, asked: _Asked) -> None:
    for number, value in fields(data):
        if number == _GRAPH:
            _read_graph(message(value), asked, 0)
        elif number == _FUNCTIONS:
            domain = name = ""
            for inner, part in fields(message(value)):
                if inner == _FUNCTION_DOMAIN:
                    domain = text(part)
                elif inner == _FUNCTION_NAME:
                    name = text(part)
                elif inner == _FUNCTION_INPUTS:
                    asked.variable.add(text(part))
                elif inner == _FUNCTION_NODES:
                    _read_node(message(part), asked, 0)
            asked.functions.add((domain, name))


def _read_graph(data: memoryview, asked: _Asked, depth: int) -> None:
    if depth > _DEEPEST:
        raise NotAGraph("graphs are nested too deeply")
    for count, (number, value) in enumerate(fields(data)):
        if count > _MOST_PARTS:
            raise NotAGraph(f"it has more than {_MOST_PARTS} parts")
        if number == _NODES:
            _read_node(message(value), asked, depth)
        elif number == _INITIALIZERS:
            _read_tensor(message(value), asked)
        elif number == _GRAPH_INPUTS:
            asked.variable.update(text(part) for inner, part in fields(message(value)) if inner == _NAME)
        elif number == _SPARSE_INITIALIZERS:
            _read_sparse(message(value), asked)


def _read_node(data: memoryview, asked: _Asked, depth: int) -> None:
    asked.nodes += 1
    if asked.nodes > _MOST_NODES:
        raise NotAGraph(f"it has more than {_MOST_NODES} nodes")
    domain = operator = ""
    inputs: list[str] = []
    outputs: list[str] = []
    constant: int | None = None
    for number, value in fields(data):
        if number == _OPERATOR:
            operator = text(value)
        elif number == _DOMAIN:
            domain = text(value)
        elif number == _INPUTS:
            inputs.append(text(value))
        elif number == _OUTPUTS:
            outputs.append(text(value))
        elif number == _ATTRIBUTES:
            for inner, part in fields(message(value)):
                if inner in (_TENSOR, _TENSORS):
                    constant = _read_tensor(message(part), asked)
                elif inner in (_SUBGRAPH, _SUBGRAPHS):
                    _read_graph(message(part), asked, depth + 1)
                elif inner in (_SPARSE, _SPARSES):
                    _read_sparse(message(part), asked)
    asked.operators.add((domain, operator))
    if operator in _LOOPS:
        asked.loops.add((operator, inputs[0] if operator == "Loop" and inputs else ""))
    if operator == "Constant" and constant is not None:
        asked.constants.update(dict.fromkeys(outputs, constant))
    else:
        asked.variable.update(outputs)


def _read_sparse(data: memoryview, asked: _Asked) -> None:
    for number, value in fields(data):
        if number in (_VALUES, _INDICES):
            _read_tensor(message(value), asked)


def _read_tensor(data: memoryview, asked: _Asked) -> int | None:
    """Note the tensor's file and, if it is a single integer, its value, which is returned too."""
    name = ""
    kind = 0
    found: list[int] = []
    for number, value in fields(data):
        if number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME:
            name = text(value)
        elif number == _INT64_DATA and len(found) < 2:
            found += itertools.islice(numbers(value), 2)
        elif number == _RAW_DATA and len(raw := message(value)) == 8:
            found.append(int.from_bytes(raw, "little", signed=True))
        elif number == _EXTERNAL_DATA:
            _read_location(message(value), asked)
    if kind != _INT64 or len(found) != 1:
        return None
    asked.constants[name] = found[0]
    return found[0]


def _read_location(entry: memoryview, asked: _Asked) -> None:
    key = location = ""
    for number, part in fields(entry):
        if number == _KEY:
            key = text(part)
        elif number == _VALUE:
            location = text(part)
    if key == "location":
        asked.locations.add(location)
