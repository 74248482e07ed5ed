"""Sequences as the inputs of an exported graph: plain rows, and a decoder's tree rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rewardloop.formats.text import Encoded
from rewardloop_trainer.reward.examples import collate

Feeds: TypeAlias = dict[str, npt.NDArray[Any]]


def encoder_feeds(sequences: Sequence[Encoded], pad: int) -> Feeds:
    """One sequence a row: input_ids, attention_mask and, with segments, token_type_ids, each (n, longest)."""
    ids, is_real, types = collate(sequences, pad)
    feeds = {"input_ids": ids.numpy(), "attention_mask": is_real.numpy()}
    if types is not None:
        feeds["token_type_ids"] = types.numpy()
    return feeds


def decoder_feeds(sequences: Sequence[Encoded], pad: int) -> Feeds:
    """One sequence a row, under one causal mask."""
    ids, is_real, _ = collate(sequences, pad)
    rows, length = ids.shape
    return {
        "input_ids": ids.numpy(),
        "position_ids": np.repeat(np.arange(length)[None], rows, axis=0),
        "mask": np.tri(length, dtype=np.bool_)[None, None],
        "ends": np.arange(rows) * length + is_real.numpy().sum(1) - 1,
    }


def tree_feeds(groups: Sequence[Sequence[Encoded]], pad: int) -> Feeds:
    """One group a row, ``[prompt, response 1, .., response k]``; the ends are in the order of the groups' sequences.

    The sequences of a group have one prompt. Each response's positions go on from the prompt's, and it sees the
    prompt and itself.
    """
    trees = [_tree(group) for group in groups]
    rows, length = len(trees), max(len(ids) for ids, *_ in trees)
    feeds: Feeds = {
        "input_ids": np.full((rows, length), pad, dtype=np.int64),
        "position_ids": np.zeros((rows, length), dtype=np.int64),
        "mask": np.zeros((rows, 1, length, length), dtype=np.bool_),
        "ends": np.concatenate([row * length + ends for row, (*_, ends) in enumerate(trees)]),
    }
    for row, (ids, positions, sees, _) in enumerate(trees):
        size = len(ids)
        feeds["input_ids"][row, :size] = ids
        feeds["position_ids"][row, :size] = positions
        feeds["mask"][row, 0, :size, :size] = sees
        # Attention over nothing is not a number, and 0 times that reaches real tokens: padding sees the first token.
        feeds["mask"][row, 0, size:, 0] = True
    return feeds


def by_prompt(sequences: Sequence[Encoded]) -> list[list[int]]:
    """Indices of the sequences that have the same prompt, for every prompt that is not empty."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        if sequence.prompt_tokens:
            groups.setdefault(tuple(sequence.ids[: sequence.prompt_tokens]), []).append(index)
    return list(groups.values())


def _tree(group: Sequence[Encoded]) -> tuple[npt.NDArray[np.int64], ...]:
    """Ids, positions (S,), what sees what (S, S), and the columns at which the sequences end."""
    prompt = group[0].prompt_tokens
    responses = [s.ids[prompt:] for s in group]
    ids = np.array([*group[0].ids[:prompt], *(i for r in responses for i in r)])
    positions = np.concatenate([np.arange(prompt), *(np.arange(prompt, prompt + len(r)) for r in responses)])
    owner = np.repeat(np.arange(len(group) + 1), [prompt, *(len(r) for r in responses)])  # 0: the prompt
    order = np.arange(len(ids))
    sees = (order[:, None] >= order) & ((owner == 0) | (owner[:, None] == owner))
    stops = prompt + np.cumsum([len(r) for r in responses])
    ends = np.array([stop - 1 if r else prompt - 1 for stop, r in zip(stops, responses, strict=True)])
    return ids, positions, sees, ends
