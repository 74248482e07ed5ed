"""Which items an optimizer step learns from, at which rate, and which sequences share a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# A group of this many tokens keeps the cores of a CPU busy. In a larger one, padding costs more than a second pass.
_ENOUGH_TOKENS = 2048
_PADDING_SHARE = 0.1


def by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group sequences of similar length, so that the rows of a group times its longest stay within the budget.

    A sequence that is longer than the budget is a group of its own. A group that is large enough ends before more than
    a tenth of it would be padding.

    Args:
        lengths: Tokens of each sequence.
        token_budget: Most tokens of a group, padding included.

    Returns:
        Indices of each group, shortest sequences first.
    """
    groups: list[list[int]] = []
    held = 0  # tokens of the last group, without padding
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        rows = len(groups[-1]) + 1 if groups else 1
        padded = rows * lengths[index]
        is_wasteful = held >= _ENOUGH_TOKENS and held + lengths[index] < (1 - _PADDING_SHARE) * padded
        if groups and padded <= token_budget and not is_wasteful:
            groups[-1].append(index)
            held += lengths[index]
        else:
            groups.append([index])
            held = lengths[index]
    return groups


def plan_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Plan the optimizer steps of one epoch; seed and epoch determine the plan.

    The items are shuffled and then sorted by length within runs of 16 steps, so that a step holds similar lengths while
    the order of the steps stays random.

    Args:
        lengths: Tokens of each item.
        size: Items of a step.
        seed: The seed of the run.
        epoch: From 0.

    Returns:
        Indices of each step's items; every index is in one step.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    steps: list[list[int]] = []
    for start in range(0, len(shuffled), 16 * size):
        run = sorted(shuffled[start : start + 16 * size], key=lambda i: (lengths[i], i))
        steps += [run[i : i + size] for i in range(0, len(run), size)]
    return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]


def rate_scale(step: int, steps: int, warmup_share: float) -> float:
    """Factor of the learning rate at ``step``, from 0 on: it rises linearly, then falls linearly to 0 at the end."""
    warmup = warmup_share * steps
    return min(1.0, (step + 1) / warmup if warmup else 1.0) * (1 - step / steps)
