"""Lets a decoder's graph take the branch of each token, and make of it the mask that it was traced with.

A run of plain rows then has no mask at all: its attention is causal, for which kernels have faster forms, such as flash
attention on CUDA, which take no mask. `rewardloop.formats.graphs.inputs` says what the branch of a token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

_PREFIX = "rewardloop.branches."  # of the names of added tensors
_IS_PLAIN = f"{_PREFIX}is_plain"
_MASK_INPUT = 3  # of Attention


def take_branches(graph: onnx.ModelProto, reach: int | None) -> None:
    """Replace the input ``mask`` by ``branches``, in place.

    Attention that reads the mask, or what of it a window leaves, becomes an If: causal without a mask if the run has
    plain rows and no token lies beyond the window, else with the mask. What else reads the mask gets one in any run.

    Args:
        graph: A decoder's graph, in which one mask may stand for all rows.
        reach: How far the narrowest window of its layers reaches, in tokens; None if no layer has one.
    """
    body = graph.graph
    masks = {"mask"} | {n.output[0] for n in body.node if n.op_type in ("And", "Expand") and "mask" in n.input}
    nodes = [_attention(node) if _reads(node, masks) else node for node in body.node]
    is_read = any("mask" in node.input for node in nodes)
    del body.node[:]
    body.node.extend([*_plain_rows(reach), _mask(is_read), *nodes])
    (mask,) = (i for i in body.input if i.name == "mask")
    mask.CopyFrom(helper.make_tensor_value_info("branches", TensorProto.INT64, ["branch_rows", "branch_columns"]))


def without_trees(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a decoder's graph for plain rows alone, without an If: CUDA captures no graph that has one."""
    plain = onnx.ModelProto()
    plain.CopyFrom(graph)
    nodes: list[onnx.NodeProto] = []
    for node in plain.graph.node:
        if node.op_type == "If" and node.input[0] == _IS_PLAIN:
            branch = _branch(node, "then_branch")
            for inner in branch.node:
                inner.output[:] = [node.output[0] if o == branch.output[0].name else o for o in inner.output]
                nodes.append(inner)
        else:
            nodes.append(node)
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain


def _branch(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    (found,) = (a.g for a in node.attribute if a.name == name)
    return found


def _reads(node: onnx.NodeProto, masks: set[str]) -> bool:
    is_simple = len(node.input) == _MASK_INPUT + 1 and sum(map(bool, node.output)) == 1
    return node.op_type == "Attention" and is_simple and node.input[_MASK_INPUT] in masks


def _attention(node: onnx.NodeProto) -> onnx.NodeProto:
    """An If whose branches are the node with its mask, and the node without it, which is causal."""
    (output,) = filter(None, node.output)
    causal, masked = onnx.NodeProto(), onnx.NodeProto()
    causal.CopyFrom(node)
    masked.CopyFrom(node)
    del causal.input[_MASK_INPUT:]
    kept = [a for a in causal.attribute if a.name != "is_causal"]
    del causal.attribute[:]
    causal.attribute.extend([*kept, helper.make_attribute("is_causal", 1)])
    return _either(output, [causal], [masked], TensorProto.FLOAT)


def _either(output: str, then: Sequence[onnx.NodeProto], other: Sequence[onnx.NodeProto], kind: int) -> onnx.NodeProto:
    """An If over plain rows, whose branches give what their last node gives."""
    branches: dict[str, Any] = {}
    for name, nodes in (("then_branch", then), ("else_branch", other)):
        end = f"{output}.{name}"
        nodes[-1].output[:] = [end]
        branches[name] = helper.make_graph(nodes, end, [], [helper.make_tensor_value_info(end, kind, None)])
    return helper.make_node("If", [_IS_PLAIN], [output], name=f"{_PREFIX}{output}", **branches)


def _plain_rows(reach: int | None) -> list[onnx.NodeProto]:
    """Whether one branch stands for all tokens, and whether every token sees all before it."""
    steps = _Steps("plain.")
    columns = steps("Shape", "branches", to="columns", start=1, end=2)
    plain = steps("Equal", columns, steps.constant("one", 1), to="has_one_branch")
    if reach is not None:
        length = steps("Shape", "input_ids", to="length", start=1, end=2)
        near = steps("LessOrEqual", length, steps.constant("reach", reach), to="is_near")
        plain = steps("And", plain, near, to="both")
    steps.nodes[-1].output[:] = [_IS_PLAIN]
    return steps.nodes


def _mask(is_read: bool) -> onnx.NodeProto:
    """The mask: in a run of plain rows the causal one, or a single True if nothing reads it."""
    plain, tree = _Steps("mask.then."), _Steps("mask.else.")
    if is_read:
        _causal(plain)
    else:
        nothing = helper.make_tensor("value", TensorProto.BOOL, [1, 1, 1, 1], [True])
        plain("Constant", to="nothing", value=nothing)
    causal = _causal(tree)
    of = tree("Unsqueeze", "branches", tree.constant("of_axes", 1, 3), to="of")
    to = tree("Unsqueeze", "branches", tree.constant("to_axes", 1, 2), to="to")
    is_own = tree("Equal", of, to, to="is_own")
    is_prompt = tree("Equal", to, tree.constant("prompt", 0), to="is_prompt")
    tree("And", causal, tree("Or", is_own, is_prompt, to="is_shown"), to="seen")
    return _either("mask", plain.nodes, tree.nodes, TensorProto.BOOL)


def _causal(steps: _Steps) -> str:
    """Add the nodes of a causal mask, (1, 1, S, S)."""
    length = steps("Squeeze", steps("Shape", "input_ids", to="lengths", start=1, end=2), to="length")
    first, step = (steps("Constant", to=name, value_int=value) for name, value in (("first", 0), ("step", 1)))
    columns = steps("Range", first, length, step, to="columns")
    of = steps("Unsqueeze", columns, steps.constant("row_axes", 0, 1, 3), to="rows")
    to = steps("Unsqueeze", columns, steps.constant("column_axes", 0, 1, 2), to="row")
    return steps("LessOrEqual", to, of, to="causal")


class _Steps:
    """Nodes in the order in which they are added. The names of their outputs begin with ``prefix``."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = f"{_PREFIX}{prefix}"

    def __call__(self, operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"{self._prefix}{to}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, *values: int) -> str:
        """Add a list of integers and return its name."""
        return self("Constant", to=name, value_ints=list(values))
