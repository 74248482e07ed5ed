"""Checks that a decoder scores answers that share a row as its own class scores each of them alone."""

from __future__ import annotations

import random
from typing import Any, Protocol

import torch
from torch import Tensor

from rewardloop.formats.graph_inputs import tree_rows
from rewardloop.formats.text import Encoded
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.decoder_rows import short_windows

_TOLERANCE = 1e-4
_PROMPT, _ANSWERS, _WINDOW = 14, (11, 7), 6  # tokens; the window is short, so that the sequences reach beyond it


class Decoder(Protocol):
    """The part of a reward model that the check needs."""

    @property
    def config(self) -> Any: ...

    @property
    def vocabulary(self) -> int: ...

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor: ...

    def at_ends(self, input_ids: Tensor, position_ids: Tensor, mask: Tensor, ends: Tensor) -> Tensor: ...


def check_rows(base: str, model: Decoder) -> None:
    """Compare two answers to one prompt in one row with each alone, with every attention window made short.

    Alone, the class of transformers makes its own masks; in a row, ours are given.

    Args:
        base: Named in the error.
        model: A decoder in evaluation mode.

    Raises:
        UnusableBase: If a score differs by more than 1e-4.
    """
    chance, pad = random.Random(0), model.config.pad_token_id or 0
    drawn = [i for i in (chance.randrange(model.vocabulary) for _ in range(100)) if i != pad]
    prompt, rest = drawn[:_PROMPT], drawn[_PROMPT:]
    group = [Encoded(prompt + rest[n : 2 * n], None, False, n, len(prompt)) for n in _ANSWERS]
    row = {
        name: torch.from_numpy(array) for name, array in tree_rows([group], _PROMPT + sum(_ANSWERS) + 2, pad).items()
    }
    with torch.no_grad(), short_windows(model.config, _WINDOW):
        alone = torch.cat(
            [model(torch.tensor([each.ids]), torch.ones((1, len(each.ids)), dtype=torch.long)) for each in group]
        )
        found = model.at_ends(row["input_ids"], row["position_ids"], row["mask"], row["ends"])
    difference = float((found - alone).abs().max())
    if not difference <= _TOLERANCE:
        raise UnusableBase(
            f"{base}: {model.config.model_type} scores two answers in one row differently from each alone (by "
            f"{difference:.2g}): its attention depends on more than positions and a mask, so it cannot be served"
        )
