"""Reads from a graph how many token ids and positions its tables have.

ONNX Runtime fails a whole run for an id or a position beyond a table on a CPU, and reads zeros for it on CUDA. So a
version must be refused at load if its texts can have one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rewardloop.formats.graphs.fields import fields, message, numbers, opened, text

_GRAPH = 7  # of a model
_NODES, _INITIALIZERS = 1, 5  # of a graph
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5  # of a node
_ATTRIBUTE_NAME, _INTEGER = 1, 3  # of an attribute
_DIMENSIONS, _TENSOR_NAME = 1, 8  # of a tensor

# Operators whose result has the elements of their first input.
_SAME_ELEMENTS: Final = frozenset(("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten"))
_SAME_ROWS: Final = frozenset(("Cast", "Identity", "DequantizeLinear"))
_GATHERS: Final = frozenset(("Gather", "GatherBlockQuantized"))
_AXES: Final = frozenset(("axis", "gather_axis"))
# Names of learned tables of absolute positions, in the exports of transformers. Their indices may be computed.
_POSITIONS: Final = re.compile(r"(?<!relative_)position_embeddings|embed_positions|\bwpe\b")


@dataclass(slots=True)
class Tables:
    """The rows of a graph's tables, each None if the graph does not tell.

    Attributes:
        tokens: Rows of the smallest table that token ids index.
        positions: Rows of the smallest table that positions index. Ids may use them from a row above 0 on.
    """

    tokens: int | None = None
    positions: int | None = None


@dataclass(slots=True)
class _Node:
    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    axis: int = 0


def read_tables(path: Path) -> Tables:
    """Return the tables of the graph in the file at ``path``.

    Tables that a node of a subgraph or of a function indexes, or by ids that other operators changed, are left out.

    Raises:
        NotAGraph: The file cannot be read.
    """
    nodes: list[_Node] = []
    rows: dict[str, int] = {}
    for number, value in fields(opened(path)):
        if number != _GRAPH:
            continue
        for inner, part in fields(message(value)):
            if inner == _NODES:
                nodes.append(_node(message(part)))
            elif inner == _INITIALIZERS:
                rows.update(_rows(message(part)))
    return _tables(nodes, rows)


def _tables(nodes: list[_Node], rows: dict[str, int]) -> Tables:
    """Follow ids, positions and tables through the nodes, which a graph lists in the order of their execution."""
    tables = Tables()
    kinds = {"input_ids": "tokens", "position_ids": "positions"}
    names = {name: name for name in rows}

    def found(kind: str, table: str) -> None:
        if (most := rows.get(table)) is not None:
            least = getattr(tables, kind)
            setattr(tables, kind, most if least is None else min(least, most))

    for node in nodes:
        first = node.inputs[0] if node.inputs else ""
        if node.operator in _SAME_ELEMENTS and first in kinds:
            kinds[node.outputs[0]] = kinds[first]
        elif node.operator in _SAME_ROWS and first in rows:
            rows[node.outputs[0]], names[node.outputs[0]] = rows[first], names[first]
        elif node.operator in _GATHERS and node.axis == 0 and first in rows:
            if (kind := kinds.get(node.inputs[1])) is not None:
                found(kind, first)
            elif _POSITIONS.search(names[first]):
                found("positions", first)
        elif node.operator == "EmbedLayerNormalization":
            found("tokens", node.inputs[2])
            found("positions", node.inputs[3])
    return tables


def _node(data: memoryview) -> _Node:
    node = _Node()
    for number, value in fields(data):
        if number == _OPERATOR:
            node.operator = text(value)
        elif number == _INPUT:
            node.inputs.append(text(value))
        elif number == _OUTPUT:
            node.outputs.append(text(value))
        elif number == _ATTRIBUTE:
            name, axis = "", 0
            for inner, part in fields(message(value)):
                if inner == _ATTRIBUTE_NAME:
                    name = text(part)
                elif inner == _INTEGER and isinstance(part, int):
                    axis = part
            if name in _AXES:
                node.axis = axis
    return node


def _rows(data: memoryview) -> Iterator[tuple[str, int]]:
    """Yield the name and the first dimension of a tensor that is a matrix."""
    name = ""
    dimensions: list[int] = []
    for number, value in fields(data):
        if number == _TENSOR_NAME:
            name = text(value)
        elif number == _DIMENSIONS:
            dimensions += numbers(value)
    if len(dimensions) == 2:
        yield name, dimensions[0]
