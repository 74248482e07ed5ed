"""One optimizer step of reward training: its loss over signals of all kinds, its accuracy, and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rewardloop_trainer.learning.optimizer import adamw
from rewardloop_trainer.reward import losses as reward_losses
from rewardloop_trainer.reward.examples import Example, bootstrap_weights
from rewardloop_trainer.reward.lora import has_lora
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining

_SLOW = ("trunk.", "words.", "phrases.")


def step_loss(
    logits: Tensor,
    threshold: Tensor,
    examples: Sequence[Example],
    settings: RewardTraining,
    level: Tensor | float = 0.0,
) -> Tensor:
    """The loss of one step: the weighted mean over its signals and heads, plus the centring term of its pairs.

    Args:
        logits: (sequences, k), those of the first example's sequences, then those of the second's, and so on.
        threshold: (k,), of thumbs and ratings.
        examples: The signals of the step.
        settings: Weights of the kinds of signals.
        level: (k,), the level of each head's logits from which centring keeps them from drifting.

    Returns:
        (), in nats.
    """
    heads = logits.shape[1]
    places: dict[str, list[tuple[int, Example]]] = {"pair": [], "tie": [], "ranking": [], "label": []}
    start = 0
    for example in examples:
        places[example.kind].append((start, example))
        start += len(example.sequences)
    losses: list[Tensor] = []
    weights: list[list[float]] = []

    def at(kind: str, offset: int = 0) -> Tensor:
        return logits[torch.tensor([p + offset for p, _ in places[kind]])]

    def add(kind: str, loss: Tensor, coefficient: float) -> None:
        losses.append(loss)
        for _, e in places[kind]:
            scale = e.weight * coefficient
            weights.append([scale * w for w in bootstrap_weights(e.key, heads, settings.bootstrap)])

    if places["pair"]:
        margins = settings.margin * torch.tensor([e.margin for _, e in places["pair"]]).unsqueeze(1)
        add("pair", reward_losses.bradley_terry(at("pair"), at("pair", 1), margins), 1.0)
    if places["tie"]:
        add("tie", reward_losses.tie(at("tie"), at("tie", 1)), settings.tie_weight)
    if places["ranking"]:
        longest = max(len(e.sequences) for _, e in places["ranking"])
        lengths = torch.tensor([len(e.sequences) for _, e in places["ranking"]])
        is_response = torch.arange(longest) < lengths.unsqueeze(1)
        index = torch.tensor([p for p, _ in places["ranking"]]).unsqueeze(1) + torch.arange(longest)
        ranked = logits[torch.where(is_response, index, 0)]
        add("ranking", reward_losses.plackett_luce(ranked, is_response), 1.0)
    if places["label"]:
        labels = torch.tensor([e.label for _, e in places["label"]])
        add("label", reward_losses.pointwise(at("label"), labels, threshold), settings.pointwise_weight)
    loss = reward_losses.weighted_mean(torch.cat(losses), torch.tensor(weights))
    if places["pair"] and settings.centring:
        loss = loss + settings.centring * reward_losses.centring(at("pair"), at("pair", 1), level).mean()
    return loss


def step_accuracy(logits: Tensor, examples: Sequence[Example]) -> float:
    """Share of the step's pairs and adjacent ranks that the head-mean logits order correctly; NaN without any."""
    mean = logits.detach().mean(1).tolist()
    right, start = [], 0
    for example in examples:
        if example.kind in ("pair", "ranking"):
            own = mean[start : start + len(example.sequences)]
            right += [a > b for a, b in pairwise(own)]
        start += len(example.sequences)
    return sum(right) / len(right) if right else math.nan


def optimizer_of(model: RewardModel, settings: RewardTraining) -> torch.optim.Optimizer:
    """AdamW with separate rates for trunk and heads, and no decay on biases and norms.

    Weights of tokens and phrases have the trunk's rate: one that is in few signals would be thrown about by the heads'.
    """
    groups = []
    learning = sum(p.numel() for p in model.trunk.parameters() if p.requires_grad)
    slow_rate = settings.rate_for(learning, are_adapters=has_lora(model))
    for is_slow, rate in ((True, slow_rate), (False, settings.head_learning_rate)):
        for is_matrix, decay in ((True, settings.weight_decay), (False, 0.0)):
            chosen = [
                p
                for name, p in model.named_parameters()
                if p.requires_grad and name.startswith(_SLOW) == is_slow and (p.ndim > 1) == is_matrix
            ]
            groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay})
    return adamw(groups)
