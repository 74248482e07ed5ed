"""Adds nodes to a graph one after the other, and takes out those that nothing needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

PREFIX = "rewardloop.branches."  # of the names of added tensors


class Steps:
    """Nodes in the order in which they are added. The names of their outputs begin with `PREFIX` and ``prefix``."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = f"{PREFIX}{prefix}"

    def __call__(self, operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"{self._prefix}{to}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, *values: int) -> str:
        """Add a list of integers and return its name."""
        return self("Constant", to=name, value_ints=list(values))

    def size(self, of: str, axis: int, *, to: str) -> str:
        """Add the size of an axis, as a list of one integer, and return its name."""
        return self("Shape", of, to=to, start=axis, end=axis + 1)


def needed(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes on which an output depends, in their order."""
    read = set(outputs)
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if read.intersection(node.output):
            kept.append(node)
            read |= _read(node)
    return kept[::-1]


def _read(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, also in graphs of its own."""
    inner = (each for attribute in node.attribute for each in (attribute.g, *attribute.graphs))
    return set(node.input).union(*(_read(each) for graph in inner for each in graph.node))
