"""Sequences as the input arrays of a reward model's ONNX graph.

An encoder's graph takes ``input_ids``, ``attention_mask`` and, if it has segments, ``token_type_ids``, each (rows,
length). A decoder's graph takes ``input_ids`` and ``position_ids`` (rows, length), ``mask`` (rows or 1, 1, length,
length; True: the token of the third axis sees that of the fourth) and ``ends``, (n,), the flat index row * length +
column of the last token of each sequence. One graph of a decoder therefore runs plain rows, with one sequence each, and
tree rows ``[prompt, response 1, .., response k]``, with one sequence for each response.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """One sequence a row under one causal mask, which stands for all rows: padding is at the end, so no token sees it.

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
        "mask": np.tri(length, dtype=np.bool_)[None, None],
        "ends": np.arange(rows) * length + lengths - 1,
    }


def tree_rows(groups: Sequence[Sequence[Encoded]], length: int, pad: int) -> GraphInputs:
    """One group a row: the prompt that its sequences share, then their responses.

    The positions of each response go on from the prompt's, and a response sees the prompt and itself. The end of an
    empty response is that of the prompt. ``ends`` are in the order of the groups' sequences.

    Args:
        groups: The sequences of a group begin with the same ``prompt_tokens`` tokens.
        length: Columns of the arrays; at least the tokens of the longest row.
        pad: Token id of padding.
    """
    ids = np.full((len(groups), length), pad, dtype=np.int64)
    positions = np.zeros((len(groups), length), dtype=np.int64)
    mask = np.zeros((len(groups), 1, length, length), dtype=np.bool_)
    counting = np.arange(length)
    causal = np.tri(max(len(sequence.ids) for group in groups for sequence in group), dtype=np.bool_)
    ends: list[int] = []
    for i, group in enumerate(groups):
        prompt = group[0].prompt_tokens
        ids[i, :prompt] = group[0].ids[:prompt]
        positions[i, :prompt] = counting[:prompt]
        mask[i, 0, :prompt, :prompt] = causal[:prompt, :prompt]
        start = prompt
        for sequence in group:
            size = len(sequence.ids) - prompt
            stop = start + size
            ids[i, start:stop] = sequence.ids[prompt:]
            positions[i, start:stop] = counting[prompt : prompt + size]
            mask[i, 0, start:stop, :prompt] = True
            mask[i, 0, start:stop, start:stop] = causal[:size, :size]
            ends.append(i * length + (stop if size else prompt) - 1)
            start = stop
        # Attention over no token gives NaN, and 0 times NaN would reach real tokens: padding sees the first token.
        mask[i, 0, start:, 0] = True
    return {"input_ids": ids, "position_ids": positions, "mask": mask, "ends": np.array(ends, dtype=np.int64)}


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
