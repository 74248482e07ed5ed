"""Counts the tokens and the phrases of what was said of responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from rewardloop.formats.text import Encoded
from rewardloop_reward.phrases import phrases_of

# A response beside another one, or on its own.
Said: TypeAlias = tuple[Encoded, Encoded | None]

# A phrase of one statement alone would tell nothing of others.
_LEAST_STATEMENTS = 2


@dataclass(frozen=True, slots=True)
class Counted:
    """How often statements have each of some things.

    Attributes:
        differences: (n, t), sparse: the counts in the first response less those in the second one.
        things: (t,), the things that are counted in any statement: ids of tokens, or places of phrases.
    """

    differences: Tensor
    things: Tensor

    def times(self, weights: Tensor) -> Tensor:
        """The statements' differences times weights (t, k), (n, k)."""
        found: Tensor = torch.sparse.mm(self.differences, weights)
        return found


def count_words(said: Sequence[Said]) -> Counted:
    """Count each token as often as it is there."""
    return _counted(said, lambda sequence, prompt: sequence.ids[prompt:], 1)


def count_phrases(said: Sequence[Said]) -> Counted:
    """Count each phrase once."""
    return _counted(said, lambda sequence, prompt: phrases_of(sequence.ids, prompt), _LEAST_STATEMENTS)


def mean_counts(bags: Iterable[Sequence[int]], things: Tensor) -> Tensor:
    """How often a bag has each of the sorted things on average, (t,)."""
    bags = list(bags)
    found = torch.tensor([thing for bag in bags for thing in bag], dtype=torch.long)
    if not len(things) or not len(found):
        return torch.zeros(len(things))
    places = torch.searchsorted(things, found).clamp_max(len(things) - 1)
    return torch.bincount(places[things[places] == found], minlength=len(things)).float() / len(bags)


def _counted(said: Sequence[Said], bag_of: Callable[[Encoded, int], list[int]], least: int) -> Counted:
    """Count what is in at least so many statements.

    Of a response on its own, what its prompt has is left out, as it cancels in a comparison.
    """
    rows, things, counts = [], [], []
    for row, (first, second) in enumerate(said):
        difference = Counter(bag_of(first, first.prompt_tokens if second is None else 0))
        if second is not None:
            difference.subtract(bag_of(second, 0))
        kept = [(thing, count) for thing, count in difference.items() if count]
        rows.append(torch.full((len(kept),), row))
        things.append(torch.tensor([thing for thing, _ in kept], dtype=torch.long))
        counts.append(torch.tensor([float(count) for _, count in kept]))
    found, places, uses = torch.unique(torch.cat(things), return_inverse=True, return_counts=True)
    is_kept = uses >= least
    of_kept = torch.cumsum(is_kept, 0) - 1
    chosen = is_kept[places]
    at = torch.stack([torch.cat(rows)[chosen], of_kept[places[chosen]]])
    shape = (len(said), int(is_kept.sum()))
    differences = torch.sparse_coo_tensor(at, torch.cat(counts)[chosen], shape, check_invariants=False)
    return Counted(differences.coalesce(), found[is_kept])
