"""What an optimizer step learns from and at what rate, and what goes through the model at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# A group of so many padded tokens keeps the cores of a CPU busy: from there on, padding costs more than a second pass.
_ENOUGH_TOKENS = 2048
_PADDING_SHARE = 0.1


def by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped by length so that rows x longest stays within the budget; a longer row goes alone.

    A group that is large enough ends where more than a tenth of it would be padding.
    """
    groups: list[list[int]] = []
    held = 0  # tokens of the last group that are no padding
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
    """Indices of each optimizer step of an epoch: every index once, in an order fixed by seed and epoch.

    Shuffled, then sorted by length within runs of 16 steps: a step holds similar lengths, the order stays random.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    steps: list[list[int]] = []
    for start in range(0, len(shuffled), 16 * size):
        run = sorted(shuffled[start : start + 16 * size], key=lambda i: (lengths[i], i))
        steps += [run[i : i + size] for i in range(0, len(run), size)]
    return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]


def rate_scale(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then linear to 0 after the last step; ``step`` counts from 0."""
    warmup = warmup_share * steps
    return min(1.0, (step + 1) / warmup if warmup else 1.0) * (1 - step / steps)
