"""Sequences as the inputs of an exported graph, each batch as long as its longest row."""

from __future__ import annotations

from collections.abc import Sequence

from rewardloop.formats.graphs.inputs import GraphInputs, decoder_rows, encoder_rows, tree_rows, tree_tokens
from rewardloop.formats.text import Encoded

_BATCH_TOKENS = 2048


def encoder_feeds(sequences: Sequence[Encoded], pad: int) -> GraphInputs:
    """One sequence a row, for an encoder; with segments if the sequences have segment ids."""
    has_segments = sequences[0].token_type_ids is not None
    return encoder_rows(sequences, _longest(sequences), pad, has_segments=has_segments)


def decoder_feeds(sequences: Sequence[Encoded], pad: int) -> GraphInputs:
    """One sequence a row, for a decoder."""
    return decoder_rows(sequences, _longest(sequences), pad)


def tree_feeds(groups: Sequence[Sequence[Encoded]], pad: int) -> GraphInputs:
    """One group a row, for a decoder. The sequences of a group have one prompt."""
    return tree_rows(groups, max(tree_tokens(group) for group in groups), pad)


def shared_feeds(group: Sequence[Encoded], pad: int) -> GraphInputs:
    """One group in one row, for a decoder that attends to the prompt's keys and values."""
    return tree_rows([group], tree_tokens(group), pad, shares_prompt=True)


def by_prompt(sequences: Sequence[Encoded]) -> list[list[int]]:
    """Indices of the sequences that have the same prompt, for every prompt that is not empty."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        if sequence.prompt_tokens:
            groups.setdefault(tuple(sequence.ids[: sequence.prompt_tokens]), []).append(index)
    return list(groups.values())


def similar_batches(sequences: Sequence[Encoded]) -> list[list[int]]:
    """Indices of the sequences in batches of similar length, of at most 2,048 tokens with padding."""
    batches: list[list[int]] = []
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids)):
        if not batches or (len(batches[-1]) + 1) * len(sequences[index].ids) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _longest(sequences: Sequence[Encoded]) -> int:
    return max(len(sequence.ids) for sequence in sequences)
