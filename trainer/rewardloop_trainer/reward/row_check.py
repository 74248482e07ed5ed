"""Checks that what shares a batch with a sequence does not change its score: other answers in its row, or padding."""

from __future__ import annotations

import random
from typing import Any, Protocol

import torch
from torch import Tensor

from rewardloop.formats.graphs.inputs import tree_rows, with_mask
from rewardloop.formats.text import Encoded
from rewardloop_reward.decoder_rows import short_windows
from rewardloop_trainer.data.base_text import UnusableBase

_TOLERANCE = 1e-4
_PROMPT, _ANSWERS, _WINDOW = 14, (11, 7), 6  # tokens; the window is short, so that the sequences reach beyond it


_TOKENS, _PADDING = 13, 11  # of the sequence that is padded


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
        name: torch.from_numpy(array)
        for name, array in with_mask(tree_rows([group], _PROMPT + sum(_ANSWERS) + 2, pad)).items()
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


def check_padding(base: str, trunk: Any) -> None:
    """Compare an encoder's states of a sequence with padding after it with those of the sequence alone.

    Args:
        base: Named in the error.
        trunk: An encoder's bare model in evaluation mode.

    Raises:
        UnusableBase: If a state differs by more than 1e-4 of the largest.
    """
    chance, pad = random.Random(0), trunk.config.pad_token_id or 0
    rows = trunk.get_input_embeddings().num_embeddings
    drawn = [i for i in (chance.randrange(rows) for _ in range(20 * _TOKENS)) if i != pad][:_TOKENS]
    ids, padded = torch.tensor([drawn]), torch.tensor([drawn + [pad] * _PADDING])
    mask = (torch.arange(_TOKENS + _PADDING) < _TOKENS).long()[None]
    with torch.no_grad():
        alone = trunk(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        beside = trunk(input_ids=padded, attention_mask=mask).last_hidden_state[:, :_TOKENS]
    if not float((beside - alone).abs().max()) <= _TOLERANCE * float(alone.abs().max()):
        raise UnusableBase(
            f"{base}: padding after a text changes what {trunk.config.model_type} computes of it, in transformers "
            "itself, and texts are scored in batches; take a base of another family"
        )
