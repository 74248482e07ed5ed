"""Lets a decoder's graph take the branch of each token, and make of it the mask that it was traced with.

A run of plain rows then has no mask at all: its attention is causal, for which kernels have faster forms, such as flash
attention on CUDA, which take no mask. `rewardloop.formats.graphs.inputs` says what the branch of a token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from rewardloop_trainer.export.attention.shared_prompt import (
    COLUMNS,
    IS_SHARED,
    PLACES,
    can_share,
    shared_attention,
    shared_rows,
)
from rewardloop_trainer.export.attention.steps import PREFIX, Steps, needed

_IS_PLAIN = f"{PREFIX}is_plain"
_NEEDS_NO_MASK = f"{PREFIX}needs_no_mask"
_MASK_INPUT = 3  # of Attention


def take_branches(graph: onnx.ModelProto, reach: int | None) -> None:
    """Replace the input ``mask`` by ``branches``, ``response_columns`` and ``response_places``, in place.

    Attention that reads the mask, or what of it a window leaves, becomes an If: causal without a mask if the run has
    plain rows and no token lies beyond the window; over the prompt's keys and values if the run is a tree row that is
    given so (`shared_prompt`); else with the mask. What else reads the mask gets one in any run.

    Args:
        graph: A decoder's graph, in which one mask may stand for all rows.
        reach: How far the narrowest window of its layers reaches, in tokens; None if no layer has one.
    """
    body = graph.graph
    masks = {"mask"} | {n.output[0] for n in body.node if n.op_type in ("And", "Expand") and "mask" in n.input}
    readers = [node for node in body.node if _reads(node, masks)]
    changed = {id(node): _attention(node) for node in readers}
    nodes = [changed.get(id(node), node) for node in body.node]
    is_read = any("mask" in node.input for node in nodes)
    all_share = not is_read and all(can_share(node) for node in readers)
    del body.node[:]
    body.node.extend([*_plain_rows(reach), *shared_rows(reach), *_mask(is_read, all_share), *nodes])
    (mask,) = (i for i in body.input if i.name == "mask")
    mask.CopyFrom(helper.make_tensor_value_info("branches", TensorProto.INT64, ["branch_rows", "branch_columns"]))
    for name, sizes in ((COLUMNS, ["shared_responses", "longest_response"]), (PLACES, ["shared_places"])):
        body.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, sizes))


def without_trees(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a decoder's graph for plain rows alone, without an If: CUDA captures no graph that has one."""
    plain = onnx.ModelProto()
    plain.CopyFrom(graph)
    nodes: list[onnx.NodeProto] = []
    for node in plain.graph.node:
        if node.op_type == "If" and node.input[0] in (_IS_PLAIN, _NEEDS_NO_MASK):
            branch = _branch(node, "then_branch")
            for inner in branch.node:
                inner.output[:] = [node.output[0] if o == branch.output[0].name else o for o in inner.output]
                nodes.append(inner)
        else:
            nodes.append(node)
    del plain.graph.node[:]
    plain.graph.node.extend(needed(nodes, {output.name for output in plain.graph.output}))
    return plain


def _branch(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    (found,) = (a.g for a in node.attribute if a.name == name)
    return found


def _reads(node: onnx.NodeProto, masks: set[str]) -> bool:
    is_simple = len(node.input) == _MASK_INPUT + 1 and sum(map(bool, node.output)) == 1
    return node.op_type == "Attention" and is_simple and node.input[_MASK_INPUT] in masks


def _attention(node: onnx.NodeProto) -> onnx.NodeProto:
    """An If over plain rows: the node without its mask, which is causal; else `_in_trees`."""
    (output,) = filter(None, node.output)
    causal = onnx.NodeProto()
    causal.CopyFrom(node)
    del causal.input[_MASK_INPUT:]
    kept = [a for a in causal.attribute if a.name != "is_causal"]
    del causal.attribute[:]
    causal.attribute.extend([*kept, helper.make_attribute("is_causal", 1)])
    return _either(_IS_PLAIN, output, [causal], [_in_trees(node, output)], TensorProto.FLOAT)


def _in_trees(node: onnx.NodeProto, output: str) -> onnx.NodeProto:
    """The node with its mask, or an If of it and the attention over the prompt's keys and values."""
    masked = onnx.NodeProto()
    masked.CopyFrom(node)
    if not can_share(node):
        return masked
    return _either(IS_SHARED, f"{output}.in_trees", shared_attention(node), [masked], TensorProto.FLOAT)


def _either(
    condition: str, output: str, then: Sequence[onnx.NodeProto], other: Sequence[onnx.NodeProto], kind: int
) -> onnx.NodeProto:
    """An If, whose branches give what their last node gives first."""
    branches: dict[str, Any] = {}
    for name, nodes in (("then_branch", then), ("else_branch", other)):
        end = f"{output}.{name}"
        nodes[-1].output[0] = end
        branches[name] = helper.make_graph(nodes, end, [], [helper.make_tensor_value_info(end, kind, None)])
    return helper.make_node("If", [condition], [output], name=f"{PREFIX}{output}", **branches)


def _plain_rows(reach: int | None) -> list[onnx.NodeProto]:
    """Whether one branch stands for all tokens, and whether every token sees all before it."""
    steps = Steps("plain.")
    columns = steps("Shape", "branches", to="columns", start=1, end=2)
    plain = steps("Equal", columns, steps.constant("one", 1), to="has_one_branch")
    if reach is not None:
        length = steps("Shape", "input_ids", to="length", start=1, end=2)
        near = steps("LessOrEqual", length, steps.constant("reach", reach), to="is_near")
        plain = steps("And", plain, near, to="both")
    steps.nodes[-1].output[:] = [_IS_PLAIN]
    return steps.nodes


def _mask(is_read: bool, all_share: bool) -> list[onnx.NodeProto]:
    """The mask: in a run of plain rows the causal one, or a single True if nothing reads it.

    Args:
        is_read: Something reads the mask in a run of plain rows, too.
        all_share: Nothing reads it in a run over a prompt's keys and values.
    """
    plain, tree = Steps("mask.then."), Steps("mask.else.")
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
    if not all_share:
        return [_either(_IS_PLAIN, "mask", plain.nodes, tree.nodes, TensorProto.BOOL)]
    either = helper.make_node("Or", [_IS_PLAIN, IS_SHARED], [_NEEDS_NO_MASK])
    return [either, _either(_NEEDS_NO_MASK, "mask", plain.nodes, tree.nodes, TensorProto.BOOL)]


def _causal(steps: Steps) -> str:
    """Add the nodes of a causal mask, (1, 1, S, S)."""
    length = steps("Squeeze", steps("Shape", "input_ids", to="lengths", start=1, end=2), to="length")
    first, step = (steps("Constant", to=name, value_int=value) for name, value in (("first", 0), ("step", 1)))
    columns = steps("Range", first, length, step, to="columns")
    of = steps("Unsqueeze", columns, steps.constant("row_axes", 0, 1, 3), to="rows")
    to = steps("Unsqueeze", columns, steps.constant("column_axes", 0, 1, 2), to="row")
    return steps("LessOrEqual", to, of, to="causal")
