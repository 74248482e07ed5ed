"""Sequences as the input arrays of a reward model's ONNX graph.

An encoder's graph takes ``input_ids``, ``attention_mask`` and, if it has segments, ``token_type_ids``, each (rows,
length). A decoder's graph takes ``input_ids`` and ``position_ids`` (rows, length), ``branches`` (rows or 1, length or
1) and ``ends``, (n,), the flat index row * length + column of the last token of each sequence. One graph of a decoder
therefore runs plain rows, with one sequence each, and tree rows ``[prompt, response 1, .., response k]``, with one
sequence for each response.

A token's branch is 0 in the prompt, n in the n-th response of its row, and above all of these in the padding. A token
sees itself, and of the tokens before it those of the prompt and of its own branch. A single 0 stands for all tokens of
plain rows, so that such a run needs no mask.

A run of one tree row needs none either if it says where the responses are. ``response_columns`` (responses, longest
response) are the columns of each response's tokens, with any column after its last one. ``response_places`` (columns
after the prompt) are the flat indices into these of each column after the prompt. Then each response attends to the
prompt's keys and values and to its own. Both are empty in other runs.

Graphs of earlier exports take less: no such columns, or ``mask`` in the place of branches (`as_taken`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rewardloop.formats.text import Encoded

GraphInputs: TypeAlias = dict[str, npt.NDArray[Any]]


def encoder_rows(sequences: Sequence[Encoded], length: int, pad: int, *, has_segments: bool) -> GraphInputs:
    """One sequence a row.

    Args:
        sequences: At most ``length`` tokens each.
        length: Columns of the arrays.
        pad: Token id of padding.
        has_segments: Whether the graph takes ``token_type_ids``; a sequence without segment ids has 0.
    """
    ids, lengths = _padded(sequences, length, pad)
    inputs: GraphInputs = {
        "input_ids": ids,
        "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int64),
    }
    if has_segments:
        inputs["token_type_ids"] = segments = np.zeros_like(ids)
        for i, sequence in enumerate(sequences):
            if sequence.token_type_ids is not None:
                segments[i, : len(sequence.ids)] = sequence.token_type_ids
    return inputs


def decoder_rows(sequences: Sequence[Encoded], length: int, pad: int) -> GraphInputs:
    """One sequence a row. Padding is at the end, so no token sees it.

    Args:
        sequences: At most ``length`` tokens each.
        length: Columns of the arrays.
        pad: Token id of padding.
    """
    ids, lengths = _padded(sequences, length, pad)
    rows = len(sequences)
    return {
        "input_ids": ids,
        "position_ids": np.repeat(np.arange(length)[None], rows, axis=0),
        "branches": np.zeros((1, 1), dtype=np.int64),
        "ends": np.arange(rows) * length + lengths - 1,
        **_nowhere(),
    }


def tree_rows(
    groups: Sequence[Sequence[Encoded]], length: int, pad: int, *, shares_prompt: bool = False
) -> GraphInputs:
    """One group a row: the prompt that its sequences share, then their responses.

    The positions of each response go on from the prompt's. The end of an empty response is that of the prompt. ``ends``
    are in the order of the groups' sequences.

    Args:
        groups: The sequences of a group begin with the same ``prompt_tokens`` tokens.
        length: Columns of the arrays; at least the tokens of the longest row.
        pad: Token id of padding.
        shares_prompt: Say where the responses are. There must be one group, and one of its responses must have tokens.
    """
    ids = np.full((len(groups), length), pad, dtype=np.int64)
    positions = np.zeros((len(groups), length), dtype=np.int64)
    branches = np.zeros((len(groups), length), dtype=np.int64)
    columns = np.arange(length)
    ends: list[npt.NDArray[np.int64]] = []
    for i, group in enumerate(groups):
        prompt, sizes = group[0].prompt_tokens, _response_sizes(group)
        row = list(group[0].ids[:prompt])
        for sequence in group:
            row += sequence.ids[prompt:]
        stops, used = prompt + np.cumsum(sizes), len(row)
        ids[i, :used] = row
        positions[i, :prompt] = columns[:prompt]
        # The responses before a response in its row are not before it in its text.
        positions[i, prompt:used] = columns[prompt:used] - np.repeat(stops - sizes - prompt, sizes)
        branches[i, prompt:used] = np.repeat(np.arange(1, len(group) + 1), sizes)
        branches[i, used:] = len(group) + 1
        ends.append(i * length + np.where(sizes > 0, stops, prompt) - 1)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "branches": branches,
        "ends": np.concatenate(ends),
        **(_whereabouts(groups[0], branches[0], positions[0]) if shares_prompt else _nowhere()),
    }


def _whereabouts(
    group: Sequence[Encoded], branches: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
) -> GraphInputs:
    """Where the responses of a tree row are, of whose columns these are the branches and positions, (length,) each."""
    prompt, sizes = group[0].prompt_tokens, _response_sizes(group)
    stops, longest = prompt + np.cumsum(sizes), int(sizes.max())
    used = slice(prompt, int(stops[-1]))
    places = np.zeros(len(branches) - prompt, dtype=np.int64)
    places[: used.stop - prompt] = (branches[used] - 1) * longest + positions[used] - prompt
    columns = np.minimum((stops - sizes)[:, None] + np.arange(longest), len(branches) - 1)
    return {"response_columns": columns, "response_places": places}


def _response_sizes(group: Sequence[Encoded]) -> npt.NDArray[np.int64]:
    """Tokens of each response of a group, (k,)."""
    return np.array([len(sequence.ids) for sequence in group], dtype=np.int64) - group[0].prompt_tokens


def _nowhere() -> GraphInputs:
    return {
        "response_columns": np.zeros((0, 0), dtype=np.int64),
        "response_places": np.zeros(0, dtype=np.int64),
    }


def as_taken(inputs: GraphInputs, names: Collection[str]) -> GraphInputs:
    """Return a decoder's inputs for a graph that takes these, which may be of an earlier export."""
    if "mask" in names:
        return with_mask(inputs)
    return inputs if names == inputs.keys() else {name: array for name, array in inputs.items() if name in names}


def with_mask(inputs: GraphInputs) -> GraphInputs:
    """Return a decoder's inputs with ``mask`` in the place of ``branches`` and of where the responses are."""
    others = {name: inputs[name] for name in ("input_ids", "position_ids", "ends")}
    return others | {"mask": mask_of(inputs["branches"], inputs["input_ids"].shape[1])}


def mask_of(branches: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.bool_]:
    """Return which tokens see which, (rows or 1, 1, length, length). True: that of the third axis sees the fourth's.

    Args:
        branches: Those of `decoder_rows` or `tree_rows`. The tokens of a branch are side by side.
        length: Columns of the rows.
    """
    causal = np.tri(length, dtype=np.bool_)
    if branches.shape[1] == 1:  # also a single token, whatever its branch
        return causal[None, None]
    mask = np.zeros((len(branches), 1, length, length), dtype=np.bool_)
    for row, seen in zip(branches, mask[:, 0], strict=True):
        prompt = int(np.count_nonzero(row == 0))
        for start, stop in pairwise((0, *(np.flatnonzero(np.diff(row)) + 1), length)):
            seen[start:stop, :prompt] = start >= prompt
            seen[start:stop, start:stop] = causal[: stop - start, : stop - start]
    return mask


def tree_tokens(group: Sequence[Encoded]) -> int:
    """Tokens of the tree row of one group."""
    prompt = group[0].prompt_tokens
    return prompt + sum(len(sequence.ids) - prompt for sequence in group)


def _padded(sequences: Sequence[Encoded], length: int, pad: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids (rows, length), padded at the end, and the number of tokens of each row."""
    ids = np.full((len(sequences), length), pad, dtype=np.int64)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence.ids)] = sequence.ids
    return ids, np.array([len(sequence.ids) for sequence in sequences], dtype=np.int64)
