"""Sequences as the input arrays of a reward model's ONNX graph.

An encoder's graph takes ``input_ids``, ``attention_mask`` and, if it has segments, ``token_type_ids``, each (rows,
length). A decoder's graph takes ``input_ids`` and ``position_ids`` (rows, length), ``branches`` (rows or 1, length or
1) and ``ends``, (n,), the flat index row * length + column of the last token of each sequence. One graph of a decoder
therefore runs plain rows, with one sequence each, and tree rows ``[prompt, response 1, .., response k]``, with one
sequence for each response.

A token's branch is 0 in the prompt, n in the n-th response of its row, and above all of these in the padding. A token
sees itself, and of the tokens before it those of the prompt and of its own branch. A single 0 stands for all tokens of
plain rows, so that such a run needs no mask. Graphs of earlier exports take ``mask`` instead (`with_mask`).
"""

from __future__ import annotations

from collections.abc import Sequence
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
    }


def tree_rows(groups: Sequence[Sequence[Encoded]], length: int, pad: int) -> GraphInputs:
    """One group a row: the prompt that its sequences share, then their responses.

    The positions of each response go on from the prompt's. The end of an empty response is that of the prompt. ``ends``
    are in the order of the groups' sequences.

    Args:
        groups: The sequences of a group begin with the same ``prompt_tokens`` tokens.
        length: Columns of the arrays; at least the tokens of the longest row.
        pad: Token id of padding.
    """
    ids = np.full((len(groups), length), pad, dtype=np.int64)
    positions = np.zeros((len(groups), length), dtype=np.int64)
    branches = np.zeros((len(groups), length), dtype=np.int64)
    counting = np.arange(length)
    ends: list[int] = []
    for i, group in enumerate(groups):
        prompt = group[0].prompt_tokens
        ids[i, :prompt] = group[0].ids[:prompt]
        positions[i, :prompt] = counting[:prompt]
        start = prompt
        for branch, sequence in enumerate(group, 1):
            size = len(sequence.ids) - prompt
            stop = start + size
            ids[i, start:stop] = sequence.ids[prompt:]
            positions[i, start:stop] = counting[prompt : prompt + size]
            branches[i, start:stop] = branch
            ends.append(i * length + (stop if size else prompt) - 1)
            start = stop
        branches[i, start:] = len(group) + 1
    return {"input_ids": ids, "position_ids": positions, "branches": branches, "ends": np.array(ends, dtype=np.int64)}


def with_mask(inputs: GraphInputs) -> GraphInputs:
    """Return a decoder's inputs for a graph of an earlier export: ``mask`` in the place of ``branches``."""
    others = {name: array for name, array in inputs.items() if name != "branches"}
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
