"""The phrases of a sequence, each counted once: its tokens, and its pairs of neighbouring tokens.

A phrase has a place in a table of fixed size. Phrases that share a place share a weight, which few do that are in the
signals at all (the hashing trick of Weinberger et al. 2009). A phrase that a response repeats, or takes from its
prompt, says no more than the first time; so a sum over first occurrences tells more of an answer than one over all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PLACES = 65_521  # prime, so that no bit of an id is lost
_LAST, _BEFORE, _PAIR = 40_503, 30_011, 1


def phrase_weights(table: nn.Embedding, ids: Tensor, previous: Tensor, is_earlier: Tensor) -> Tensor:
    """What each token adds: the weights of the phrases that end with it and are not in its sequence before.

    Args:
        table: A weight for each place and head, (PLACES, k).
        ids: (B, S).
        previous: (B, S), the token before each, 0 before the first.
        is_earlier: (B, S, S), bool; True if the token of the third axis is before that of the second in its sequence.

    Returns:
        (B, S, k).
    """
    single, pair = _places(ids, previous)
    return _once(table, single, is_earlier) + _once(table, pair, is_earlier)


def phrases_of(ids: Sequence[int], prompt: int = 0) -> list[int]:
    """The places of the phrases of a sequence, each once, without those of its first ``prompt`` ids."""
    if not ids:
        return []
    current = torch.tensor(ids, dtype=torch.long)
    single, pair = _places(current, torch.cat([current.new_zeros(1), current[:-1]]))
    found: list[int] = []
    for kind in (single.tolist(), pair.tolist()):
        found += set(kind[prompt:]) - set(kind[:prompt])
    return found


def _places(ids: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    """The places of the tokens, and of the pairs that end with them."""
    return ids % PLACES, (ids * _LAST + previous * _BEFORE + _PAIR) % PLACES


def _once(table: nn.Embedding, places: Tensor, is_earlier: Tensor) -> Tensor:
    is_repeat = (is_earlier & (places.unsqueeze(2) == places.unsqueeze(1))).any(2)
    weights: Tensor = table(places)
    return weights.masked_fill(is_repeat.unsqueeze(-1), 0.0)
