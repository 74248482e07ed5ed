"""A reward model on a trunk that never learns, so that no text has to be read twice, in one run or in several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from rewardloop_trainer.reward.model import RewardModel


class RememberingModel(RewardModel):
    """A model on MiniLM whose trunk never learns."""

    read: ClassVar[dict[tuple[int, ...], Tensor]] = {}

    def _pooled(self, inputs: Mapping[str, Tensor], attention_mask: Tensor) -> Tensor:
        lengths = attention_mask.sum(1).tolist()
        keys = [tuple(ids[:n]) for ids, n in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
        if new := [i for i, key in enumerate(keys) if key not in self.read]:
            states = super()._pooled({name: tensor[new] for name, tensor in inputs.items()}, attention_mask[new])
            self.read.update((keys[i], state.detach().clone()) for i, state in zip(new, states, strict=True))
        return torch.stack([self.read[key] for key in keys])


@contextmanager
def remembered(path: Path) -> Iterator[None]:
    """Begin with what an earlier run read, and keep what this one reads, even if it is stopped."""
    if path.exists():
        RememberingModel.read.update(torch.load(path, weights_only=True))
    before = len(RememberingModel.read)
    try:
        yield
    finally:
        if len(RememberingModel.read) > before:
            partial = path.with_suffix(".part")
            torch.save(RememberingModel.read, partial)
            partial.replace(path)
