"""Reads the signals of a linear fit as statements with features: what was said, states, tokens' counts and phrases."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardloop.formats.text import Encoded
from rewardloop_trainer.data.token_batches import by_length
from rewardloop_trainer.reward.examples import Example, bootstrap_weights, forward
from rewardloop_trainer.reward.linear_start.counts import Counted, count_phrases, count_words
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining

# In each of the folds the ridges are judged on the signals of one prompt in so many. With fewer prompts than this they
# are judged on signals about responses of which no other signal is learned from, one response in so many.
FOLDS = 3
_APART_PROMPTS, _LEAST_PROMPTS, _APART_RESPONSES = 5, 20, 3


@dataclass(frozen=True, slots=True)
class Statements:
    """What was said of a response, or of one response beside another, n statements.

    Of a comparison the features are differences, the first response's less the second one's. Of a response on its own
    they are its own, less those of the mean response.

    Attributes:
        base: (n, k), the margins that the model had.
        states: (n, d), the states, in deviations of the differences.
        words: The tokens' counts.
        phrases: The phrases, each of which a sequence has once or not.
        target: (n,), the share that preferred the first response, or that liked the only one.
        is_label: (n,), 1 for a response on its own, and 0 for a comparison.
        offset: (n,), by how much the first response should win at least.
        weight: (n, k), of each statement for each head.
        judged: (n,), its weight where the ridges are judged by it.
        cluster: (n,), its prompt, or a number of its own if there are few prompts: errors within a cluster are alike.
        is_apart: (folds, n), bool, whether the ridges are judged by it.
        is_learned: (folds, n), bool, whether the fits that are judged learn from it.
    """

    base: Tensor
    states: Tensor
    words: Counted
    phrases: Counted
    target: Tensor
    is_label: Tensor
    offset: Tensor
    weight: Tensor
    judged: Tensor
    cluster: Tensor
    is_apart: Tensor
    is_learned: Tensor


@dataclass(frozen=True, slots=True)
class Centre:
    """What the features are measured in: the states' ``deviation`` (d,), and of the responses on their own the mean
    ``logit`` (k,), ``state`` (d,) and ``prompts``, the prompts that are before them."""

    deviation: Tensor
    logit: Tensor
    state: Tensor
    prompts: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Said:
    """A statement: the places of its one or two sequences, its example, and its share of the example's weight."""

    first: int
    second: int | None
    example: Example
    share: float


def state_what_was_said(
    examples: Sequence[Example], states: Tensor, logits: Tensor, settings: RewardTraining
) -> tuple[Statements, Centre]:
    """Return what the examples say, whose sequences have these states (s, d) and logits (s, k)."""
    sequences = [s for e in examples for s in e.sequences]
    said = _said(examples)
    alone = [each.first for each in said if each.second is None]
    compared = [(each.first, each.second) for each in said if each.second is not None]
    state, logit = (of[alone].mean(0) if alone else torch.zeros_like(of[0]) for of in (states, logits))
    if len(compared) > 1:
        deviation = (states[[a for a, _ in compared]] - states[[b for _, b in compared]]).std(0)
    else:
        deviation = states.std(0) * 2**0.5
    centre = Centre(
        deviation.clamp_min(1e-6), logit, state, [sequences[i].ids[: sequences[i].prompt_tokens] for i in alone]
    )
    firsts = torch.tensor([each.first for each in said])
    is_label = torch.tensor([float(each.second is None) for each in said])
    seconds = torch.tensor([each.first if each.second is None else each.second for each in said])
    second_states, second_logits = (
        torch.where(is_label.bool().unsqueeze(-1), mean, of[seconds]) for mean, of in ((state, states), (logit, logits))
    )
    apart, learned = _folds([each.example for each in said], examples)
    heads = logits.shape[1]
    compared_sequences = [(sequences[s.first], None if s.second is None else sequences[s.second]) for s in said]
    found = Statements(
        logits[firsts] - second_logits,
        (states[firsts] - second_states) / centre.deviation,
        count_words(compared_sequences),
        count_phrases(compared_sequences),
        torch.tensor([_target(each.example) for each in said]),
        is_label,
        torch.tensor([settings.margin * each.example.margin for each in said]),
        torch.tensor([_weights(each, heads, settings) for each in said]),
        torch.tensor([_coefficient(each, settings) for each in said]),
        _clusters([each.example for each in said]),
        apart,
        learned,
    )
    return found, centre


def _said(examples: Sequence[Example]) -> list[_Said]:
    found: list[_Said] = []
    start = 0
    for example in examples:
        count = len(example.sequences)
        if count == 1:
            found.append(_Said(start, None, example, 1.0))
        for place in range(start, start + count - 1):  # a ranking's neighbours
            found.append(_Said(place, place + 1, example, 1 / (count - 1)))
        start += count
    return found


def _target(example: Example) -> float:
    return {"label": example.label, "tie": 0.5}.get(example.kind, 1.0)


def _coefficient(said: _Said, settings: RewardTraining) -> float:
    kinds = {"label": settings.pointwise_weight, "tie": settings.tie_weight}
    return kinds.get(said.example.kind, 1.0) * said.example.weight * said.share


def _weights(said: _Said, heads: int, settings: RewardTraining) -> list[float]:
    own = _coefficient(said, settings)
    return [w * own for w in bootstrap_weights(said.example.key, heads, settings.bootstrap)]


def _folds(said: Sequence[Example], examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Divide the statements of each fold into those to judge the ridges by and those to learn from, (folds, n)."""
    by_prompt = len({e.prompt for e in examples}) >= _LEAST_PROMPTS
    apart, learned = [], []
    for fold in range(FOLDS):
        if by_prompt:
            drawn = [[_in_fold(e.prompt, _APART_PROMPTS, fold)] for e in said]
        else:
            drawn = [[_in_fold(repr(s.ids), _APART_RESPONSES, fold) for s in e.sequences] for e in said]
        apart.append([all(each) for each in drawn])
        learned.append([not any(each) for each in drawn])
    return torch.tensor(apart), torch.tensor(learned)


def _clusters(said: Sequence[Example]) -> Tensor:
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(e.prompt for e in said))}
    if len(prompts) < _LEAST_PROMPTS:
        return torch.arange(len(said))
    return torch.tensor([prompts[e.prompt] for e in said])


def _in_fold(key: str, count: int, fold: int) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % count == fold


def states_and_logits(
    model: RewardModel, sequences: Sequence[Encoded], pad: int, token_budget: int
) -> tuple[Tensor, Tensor]:
    """What the heads read of each sequence, (n, d), and its logits, (n, k), on the CPU. Each distinct one runs once."""
    places: dict[tuple[int, ...], int] = {}
    firsts: list[Encoded] = []
    order = []
    for sequence in sequences:
        key = (*sequence.ids, -1, *(sequence.token_type_ids or ()))
        if places.setdefault(key, len(places)) == len(firsts):
            firsts.append(sequence)
        order.append(places[key])
    read: list[Tensor] = []
    hook = model.heads.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].cpu()))
    groups = by_length([len(s.ids) for s in firsts], token_budget)
    try:
        with torch.no_grad():
            logits = torch.cat([forward(model, [firsts[i] for i in group], pad) for group in groups])
    finally:
        hook.remove()
    back = torch.argsort(torch.tensor([i for group in groups for i in group]))[torch.tensor(order)]
    return torch.cat(read).float()[back], logits.float()[back]
