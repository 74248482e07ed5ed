"""Combines the scores of an answer's steps.

A step ends where the sequence has -1 - id in place of the id of the step token (`rewardloop.formats.text.Steps`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

# How the scores of all steps become one. The last step's needs no marks, because a sequence ends there.
StepRule: TypeAlias = Literal["mean", "min", "product"]
STEP_RULES: tuple[StepRule, ...] = get_args(StepRule)


def split_marks(input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token ids without marks, and True where a step ends; all (B, S)."""
    is_end = input_ids < 0
    return torch.where(is_end, -1 - input_ids, input_ids), is_end


def combined(rule: StepRule, scores: Tensor, is_end: Tensor) -> Tensor:
    """Combine the scores of the steps of each sequence.

    Args:
        rule: How they are combined.
        scores: (N, S, k), of every token by every head.
        is_end: (N, S), bool, True at one or more tokens of each sequence: the ends of its steps.

    Returns:
        (N, k).
    """
    at_end = is_end[..., None]
    if rule == "min":
        return torch.where(at_end, scores, torch.inf).amin(1)
    if rule == "product":
        return torch.where(at_end, scores, 1.0).prod(1)
    return torch.where(at_end, scores, 0.0).sum(1) / is_end.sum(1, dtype=scores.dtype)[:, None]
