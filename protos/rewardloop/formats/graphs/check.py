"""Checks a graph before ONNX Runtime reads it: it may ask only for files of its own version and known operators.

This is needed because ONNX Runtime opens any external file that a graph names, anywhere on the machine, and takes some
locations as addresses in memory. The file is walked as protobuf fields, so no onnx package is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from rewardloop.formats.graphs.fields import NotAGraph, fields, message, opened, text
from rewardloop.formats.store_errors import UnsafeVersion

# The domains of the operators that ONNX Runtime itself has. Others would come from a foreign library.
DOMAINS: Final = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
# Nodes that hold compiled code of a device, or name a file that holds it.
_REFUSED_OPERATORS: Final = frozenset(("EPContext",))

_DEEPEST = 32
_GRAPH, _FUNCTIONS = 7, 25  # of a model
_NODES, _INITIALIZERS, _SPARSE_INITIALIZERS = 1, 5, 15  # of a graph
_FUNCTION_NAME, _FUNCTION_NODES, _FUNCTION_DOMAIN = 1, 7, 10
_OPERATOR, _ATTRIBUTES, _DOMAIN = 4, 5, 7  # of a node
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE, _SPARSES = 5, 6, 10, 11, 22, 23  # of an attribute
_VALUES, _INDICES = 1, 2  # of a sparse tensor
_EXTERNAL_DATA = 13  # of a tensor
_KEY, _VALUE = 1, 2  # of an entry of that


def check_graph(path: Path, files: Mapping[str, str], where: str) -> None:
    """Check the graph in the file at ``path``.

    Args:
        path: The ONNX file.
        files: The version's files, by their paths from its folder.
        where: The version's name, for error texts.

    Raises:
        UnsafeVersion: The graph asks for a file that is not in ``files``, or for an operator that ONNX Runtime
            does not have.
        NotAGraph: The file cannot be read.
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
    """

    operators: set[tuple[str, str]] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    locations: set[str] = field(default_factory=set)


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
                elif inner == _FUNCTION_NODES:
                    _read_node(message(part), asked, 0)
            asked.functions.add((domain, name))


def _read_graph(data: memoryview, asked: _Asked, depth: int) -> None:
    if depth > _DEEPEST:
        raise NotAGraph("graphs are nested too deeply")
    for number, value in fields(data):
        if number == _NODES:
            _read_node(message(value), asked, depth)
        elif number == _INITIALIZERS:
            _read_tensor(message(value), asked)
        elif number == _SPARSE_INITIALIZERS:
            _read_sparse(message(value), asked)


def _read_node(data: memoryview, asked: _Asked, depth: int) -> None:
    domain = operator = ""
    for number, value in fields(data):
        if number == _OPERATOR:
            operator = text(value)
        elif number == _DOMAIN:
            domain = text(value)
        elif number == _ATTRIBUTES:
            for inner, part in fields(message(value)):
                if inner in (_TENSOR, _TENSORS):
                    _read_tensor(message(part), asked)
                elif inner in (_SUBGRAPH, _SUBGRAPHS):
                    _read_graph(message(part), asked, depth + 1)
                elif inner in (_SPARSE, _SPARSES):
                    _read_sparse(message(part), asked)
    asked.operators.add((domain, operator))


def _read_sparse(data: memoryview, asked: _Asked) -> None:
    for number, value in fields(data):
        if number in (_VALUES, _INDICES):
            _read_tensor(message(value), asked)


def _read_tensor(data: memoryview, asked: _Asked) -> None:
    for number, value in fields(data):
        if number != _EXTERNAL_DATA:
            continue
        key = location = ""
        for inner, part in fields(message(value)):
            if inner == _KEY:
                key = text(part)
            elif inner == _VALUE:
                location = text(part)
        if key == "location":
            asked.locations.add(location)
