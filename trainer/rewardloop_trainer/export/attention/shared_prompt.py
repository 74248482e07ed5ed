"""Attention of one tree row over its prompt's keys and values, without a mask.

The prompt's tokens attend to each other, causally. The tokens of the responses are laid out as one row a response.
These rows attend causally to themselves behind the keys and values of the prompt, which each of them has as its past.
So a response sees the prompt and itself, as with the mask of a tree row, and no scores between responses are computed.
Attention takes heads for rows and responses for heads, because tokens are then laid out without a transposition.
`rewardloop.formats.graphs.inputs` says what ``response_columns`` and ``response_places`` are.
"""

from __future__ import annotations

import onnx

from rewardloop_trainer.export.attention.steps import PREFIX, Steps

COLUMNS, PLACES = "response_columns", "response_places"
IS_SHARED = f"{PREFIX}is_shared"
_PROMPT = f"{PREFIX}shared.prompt"
_COPIES = f"{PREFIX}shared.copies"
_TOKENS = 2  # the axis of queries, keys and values: (rows, heads, tokens, d)


def shared_rows(reach: int | None) -> list[onnx.NodeProto]:
    """The nodes, outside of any attention, that say whether a run is such a row, and with which sizes.

    Args:
        reach: How far the narrowest window spans, in tokens. No response with its prompt may be longer.
    """
    steps = Steps("shared.")
    places = steps.size(PLACES, 0, to="places")
    steps("Sub", steps.size("input_ids", 1, to="length"), places, to="prompt")
    one, ones = steps.constant("one", 1), steps.constant("ones", 1, 1)
    steps("Concat", one, steps.size(COLUMNS, 0, to="responses"), ones, to="copies", axis=0)
    shared = steps("Greater", places, steps.constant("none", 0), to="has_places")
    if reach is not None:
        longest = steps("Add", _PROMPT, steps.size(COLUMNS, 1, to="longest"), to="span")
        near = steps("LessOrEqual", longest, steps.constant("reach", reach), to="is_near")
        steps("And", shared, near, to="both")
    steps.nodes[-1].output[:] = [IS_SHARED]
    return steps.nodes


def can_share(node: onnx.NodeProto) -> bool:
    """Whether the heads of an Attention's inputs are apart, as the nodes of `shared_attention` need them."""
    return not any(a.name == "q_num_heads" for a in node.attribute)


def shared_attention(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that compute what an Attention with the mask of a tree row computes; the last one gives its output."""
    (output,) = filter(None, node.output)
    steps = Steps(f"{output}.")
    row, second = steps.constant("row", 0), steps.constant("second", 1)
    start, axis = row, steps.constant("axis", _TOKENS)
    first, own = [], []
    for letter, name in zip("qkv", node.input[:3], strict=True):
        first.append(steps("Slice", name, start, _PROMPT, axis, to=f"{letter}.prompt"))
        apart = steps("Gather", name, COLUMNS, to=f"{letter}.apart", axis=_TOKENS)
        own.append(steps("Squeeze", apart, row, to=f"{letter}.responses"))
    past = []
    for letter, name in zip("kv", first[1:], strict=True):
        heads = steps("Unsqueeze", steps("Squeeze", name, row, to=f"{letter}.heads"), second, to=f"{letter}.once")
        past.append(steps("Expand", heads, _COPIES, to=f"{letter}.past"))
    of_prompt = _causal(steps, node, first, "prompt")
    of_responses = steps("Unsqueeze", _causal(steps, node, [*own, "", *past], "responses"), row, to="whole")
    width = steps.size(node.input[2], 3, to="width")
    shape = steps("Concat", steps.constant("kept", 0, 0, -1), width, to="shape", axis=0)
    side_by_side = steps("Reshape", of_responses, shape, to="side_by_side")
    back = steps("Gather", side_by_side, PLACES, to="back", axis=_TOKENS)
    steps("Concat", of_prompt, back, to="joined", axis=_TOKENS)
    return steps.nodes


def _causal(steps: Steps, like: onnx.NodeProto, inputs: list[str], part: str) -> str:
    """Add causal attention with the attributes of ``like``, and return the name of its output.

    Attention over a past must also give the keys and values that it has then seen.
    """
    output = steps("Attention", *inputs, to=f"of_{part}", is_causal=1)
    node = steps.nodes[-1]
    node.attribute.extend(a for a in like.attribute if a.name != "is_causal")
    if len(inputs) > 3:
        node.output.extend([f"{output}.keys", f"{output}.values"])
    return output
