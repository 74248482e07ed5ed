"""Gives attention its queries, keys and values as they come out of their layers, with the heads side by side.

The operators Attention and RotaryEmbedding split the heads themselves if they are told how many there are. The exporter
splits them before, with a Reshape and a Transpose for each input and for the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

_INPUTS = 3  # queries, keys and values
_SPLIT = [0, 2, 1, 3]  # (rows, tokens, heads, d) to (rows, heads, tokens, d), and back


@dataclass(frozen=True, slots=True)
class _Input:
    """An input of attention.

    Attributes:
        joined: The tensor with its heads side by side, (rows, tokens, heads * d).
        apart: The same with its heads apart.
        heads: How many there are.
        rotation: The node that rotates it before attention, if there is one.
    """

    joined: str
    apart: str
    heads: int
    rotation: onnx.NodeProto | None


def join_heads(body: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> bool:
    """Join the heads of these nodes of attention, in place. What is then not needed stays in the graph.

    Returns:
        False, and nothing is changed, if the inputs or the output of one of them do not allow it.
    """
    graph = _Graph(body)
    found = [(node, [graph.input(name) for name in node.input[:_INPUTS]], graph.end(node)) for node in nodes]
    fitting = []
    for node, (queries, keys, values), end in found:
        if queries is None or keys is None or values is None or end is None or keys.heads != values.heads:
            return False
        fitting.append((node, queries, keys, values, end))
    for node, queries, keys, values, end in fitting:
        for place, each in enumerate((queries, keys, values)):
            graph.join(node, place, each)
        graph.forget(node.output[0])
        node.output[0] = end.output[0]
        end.output[0] = f"{end.output[0]}.unused"
        heads = {"q_num_heads": queries.heads, "kv_num_heads": keys.heads}
        node.attribute.extend(helper.make_attribute(name, count) for name, count in heads.items())
    return True


class _Graph:
    """The nodes of a graph by the tensors that they make and read."""

    def __init__(self, body: onnx.GraphProto) -> None:
        self._body = body
        self._shapes: dict[str, Any] = {each.name: each.type.tensor_type.shape.dim for each in body.value_info}
        self._makers = {name: node for node in body.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in body.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def input(self, name: str) -> _Input | None:
        """How an input of attention came to have its heads apart; None if in another way."""
        maker = self._makers.get(name)
        rotation = None
        if maker is not None and maker.op_type == "RotaryEmbedding" and len(self._readers[name]) == 1:
            rotation, name = maker, maker.input[0]
            maker = self._makers.get(name)
        split = self._makers.get(maker.input[0]) if maker is not None and _swaps_heads(maker) else None
        if split is None or split.op_type != "Reshape":
            return None
        joined, apart = self._sizes(split.input[0], 3), self._sizes(split.output[0], 4)
        if not joined or not apart or joined[-1] != apart[-1] * apart[-2] or not joined[-1]:
            return None
        return _Input(split.input[0], name, apart[-2], rotation)

    def end(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The node that puts the heads of attention's output side by side, if nothing else reads that output."""
        turned = self._only_reader(node.output[0])
        end = self._only_reader(turned.output[0]) if turned is not None and _swaps_heads(turned) else None
        if turned is None or end is None or end.op_type != "Reshape":
            return None
        apart, joined = self._sizes(turned.output[0], 4), self._sizes(end.output[0], 3)
        is_joined = apart and joined and joined[-1] and joined[-1] == apart[-1] * apart[-2]
        return end if is_joined else None

    def join(self, node: onnx.NodeProto, place: int, given: _Input) -> None:
        """Let attention, or the rotation before it, take an input with its heads joined."""
        if given.rotation is None:
            node.input[place] = given.joined
            return
        given.rotation.input[0] = given.joined
        self.forget(given.rotation.output[0])
        kept = [each for each in given.rotation.attribute if each.name != "num_heads"]
        del given.rotation.attribute[:]
        given.rotation.attribute.extend([*kept, helper.make_attribute("num_heads", given.heads)])
        for reader in self._readers[given.apart]:
            spans = {each.name: each.i for each in reader.attribute}
            if reader.op_type == "Shape" and (spans.get("start", 0), spans.get("end")) == (0, 1):
                reader.input[0] = given.joined  # the number of rows is the same

    def forget(self, name: str) -> None:
        """Forget the shape of a tensor that is about to have another one."""
        for index, each in enumerate(self._body.value_info):
            if each.name == name:
                del self._body.value_info[index]
                return

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 else None

    def _sizes(self, name: str, rank: int) -> list[int] | None:
        """The sizes of a tensor of this rank, 0 where one may be any; None if it is of another rank."""
        sizes = [each.dim_value for each in self._shapes.get(name, ())]
        return sizes if len(sizes) == rank else None


def _swaps_heads(node: onnx.NodeProto) -> bool:
    return node.op_type == "Transpose" and any(a.name == "perm" and list(a.ints) == _SPLIT for a in node.attribute)
