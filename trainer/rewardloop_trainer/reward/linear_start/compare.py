"""Reads the pairs of a linear fit as features: margins, states and tokens' counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rewardloop.formats.text import Encoded
from rewardloop_trainer.data.token_batches import by_length
from rewardloop_trainer.reward.examples import Example, bootstrap_weights, collate
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining

# The ridges are chosen on the signals of one prompt in so many. With fewer prompts than this they are chosen on signals
# that compare responses of which no other signal is learned from, one response in so many.
_APART_PROMPTS, _LEAST_PROMPTS, _APART_RESPONSES = 5, 20, 3


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pairs as features, n of them.

    Attributes:
        base: (n, k), the margins that the model had.
        states: (n, d), the differences of the states, with deviation 1.
        row: (m,), the pair of each token whose counts differ.
        token: (m,), its place in ``tokens``.
        count: (m,), the difference of its counts.
        tokens: (t,), the ids of the tokens whose counts differ in any pair.
        weight: (n, k), of each pair for each head.
        is_apart: (n,), bool, whether the ridges are chosen by the pair.
        is_learned: (n,), bool, whether the fits that are compared for this learn from it.
    """

    base: Tensor
    states: Tensor
    row: Tensor
    token: Tensor
    count: Tensor
    tokens: Tensor
    weight: Tensor
    is_apart: Tensor
    is_learned: Tensor


def compare(
    examples: Sequence[Example], states: Tensor, logits: Tensor, settings: RewardTraining
) -> tuple[Comparisons, Tensor]:
    """Return the comparisons of the examples, whose sequences have these states, and the states' deviation (d,)."""
    sequences = [s for e in examples for s in e.sequences]
    winners, losers, weights, parts = [], [], [], []
    start, heads = 0, logits.shape[1]
    for example, part in zip(examples, _parts(examples), strict=True):
        count = len(example.sequences)
        own = [w * example.weight / (count - 1) for w in bootstrap_weights(example.key, heads, settings.bootstrap)]
        for place in range(start, start + count - 1):  # a ranking's neighbours
            winners.append(place)
            losers.append(place + 1)
            weights.append(own)
            parts.append(part)
        start += count
    won, lost = torch.tensor(winners), torch.tensor(losers)
    difference = states[won] - states[lost]
    deviation = difference.std(0).clamp_min(1e-6)
    row, token, count_of, tokens = _counts(sequences, winners, losers)
    compared = Comparisons(
        logits[won] - logits[lost],
        difference / deviation,
        *(row, token, count_of, tokens),
        torch.tensor(weights),
        torch.tensor([part == "apart" for part in parts]),
        torch.tensor([part == "learned" for part in parts]),
    )
    return compared, deviation


def _parts(examples: Sequence[Example]) -> list[Literal["learned", "apart", "neither"]]:
    """Divide the signals into those to learn from and those to choose the ridges by."""
    if len({e.prompt for e in examples}) >= _LEAST_PROMPTS:
        return ["apart" if _one_in(_APART_PROMPTS, e.prompt) else "learned" for e in examples]
    found: list[Literal["learned", "apart", "neither"]] = []
    for example in examples:
        apart = [_one_in(_APART_RESPONSES, repr(s.ids)) for s in example.sequences]
        found.append("apart" if all(apart) else "neither" if any(apart) else "learned")
    return found


def _one_in(count: int, key: str) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % count == 0


def mean_counts(sequences: Sequence[Encoded], tokens: Tensor) -> Tensor:
    """How often a sequence has each of the sorted tokens on average, (t,)."""
    if not len(tokens):
        return torch.zeros(0)
    ids = torch.tensor([token for sequence in sequences for token in sequence.ids])
    places = torch.searchsorted(tokens, ids).clamp_max(len(tokens) - 1)
    return torch.bincount(places[tokens[places] == ids], minlength=len(tokens)).float() / len(sequences)


def _counts(
    sequences: Sequence[Encoded], winners: Sequence[int], losers: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    counted = [Counter(s.ids) for s in sequences]
    rows, ids, counts = [], [], []
    for row, (won, lost) in enumerate(zip(winners, losers, strict=True)):
        difference = Counter(counted[won])
        difference.subtract(counted[lost])
        for token, count in difference.items():
            if count:
                rows.append(row)
                ids.append(token)
                counts.append(float(count))
    tokens, places = torch.unique(torch.tensor(ids, dtype=torch.long), return_inverse=True)
    return torch.tensor(rows, dtype=torch.long), places, torch.tensor(counts), tokens


def states_and_logits(
    model: RewardModel, sequences: Sequence[Encoded], pad: int, token_budget: int
) -> tuple[Tensor, Tensor]:
    """What the heads read of each sequence, (n, d), and its logits, (n, k). Each distinct sequence runs once."""
    places: dict[tuple[int, ...], int] = {}
    firsts: list[Encoded] = []
    order = []
    for sequence in sequences:
        key = (*sequence.ids, -1, *(sequence.token_type_ids or ()))
        if places.setdefault(key, len(places)) == len(firsts):
            firsts.append(sequence)
        order.append(places[key])
    read: list[Tensor] = []
    hook = model.heads.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    groups = by_length([len(s.ids) for s in firsts], token_budget)
    try:
        with torch.no_grad():
            logits = torch.cat([model(*collate([firsts[i] for i in group], pad)) for group in groups])
    finally:
        hook.remove()
    back = torch.argsort(torch.tensor([i for group in groups for i in group]))[torch.tensor(order)]
    return torch.cat(read).float()[back], logits.float()[back]
