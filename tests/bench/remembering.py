"""A reward model on a trunk that never learns, so that no text has to be read twice, in one run or in several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from rewardloop_trainer.reward.model import RewardModel

_Inputs = Mapping[str, Tensor]
_reads = RewardModel._pooled


class RememberingModel(RewardModel):
    """A model on MiniLM whose trunk never learns."""

    read: ClassVar[dict[tuple[int, ...], Tensor]] = {}

    def _pooled(self, inputs: _Inputs, attention_mask: Tensor) -> Tensor:
        return _recalled(self, inputs, attention_mask)


def _recalled(model: RewardModel, inputs: _Inputs, attention_mask: Tensor) -> Tensor:
    known = RememberingModel.read
    lengths = attention_mask.sum(1).tolist()
    keys = [tuple(ids[:n]) for ids, n in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
    if new := [i for i, key in enumerate(keys) if key not in known]:
        states = _reads(model, {name: tensor[new] for name, tensor in inputs.items()}, attention_mask[new])
        known.update((keys[i], state.detach().clone()) for i, state in zip(new, states, strict=True))
    return torch.stack([known[key] for key in keys])


@contextmanager
def remembered(path: Path, *, by_all: bool = False) -> Iterator[None]:
    """Begin with what an earlier run read, and keep what this one reads, even if it is stopped.

    ``by_all``: every reward model of the process remembers, as all of them are on the same trunk.
    """
    if path.exists():
        RememberingModel.read.update(torch.load(path, weights_only=True))
    before = len(RememberingModel.read)
    if by_all:
        RewardModel._pooled = _recalled  # type: ignore[method-assign]
    try:
        yield
    finally:
        RewardModel._pooled = _reads  # type: ignore[method-assign]
        if len(RememberingModel.read) > before:
            partial = path.with_suffix(".part")
            torch.save(RememberingModel.read, partial)
            partial.replace(path)
