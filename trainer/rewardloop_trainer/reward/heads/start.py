"""What score heads start with: the last layer of a trained head, and the logits of the head's own class."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rewardloop_reward.neck import Neck
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.heads.choice import HeadChoice

SCORE_TOLERANCE = 1e-4
OFFER = "--new-heads (reward.new_heads of the trainer) drops it and draws new heads"
_SEQUENCES, _LONGEST = 8, 48  # on which scores are compared


@dataclass(frozen=True, slots=True)
class HeadStart:
    """The layers of a trained head that heads start with, and what its own class computes.

    Attributes:
        weight: Of the last layer, summed over the labels, (1, d).
        bias: Of the last layer, (1,).
        neck: What is between the trunk and the last layer, if there is anything.
        ids: Random sequences, each (1, S).
        logits: The logit of each sequence by the head's own class, summed over the labels.
        skips_padding: Whether that class reads before padding tokens at the end of a sequence.
        note: Which head of the checkpoint the score is, in words.
        labels: Number of the head's labels.
    """

    weight: Tensor
    bias: Tensor
    neck: Neck | None
    ids: tuple[Tensor, ...]
    logits: tuple[float, ...]
    skips_padding: bool
    note: str
    labels: int

    def difference(self, model: nn.Module) -> float:
        """Return the largest difference between these logits and a reward model's; NaN if one of them is NaN.

        Args:
            model: Maps ids and mask, both (1, S), to logits (1, heads).
        """
        with torch.no_grad():
            ours = torch.stack([model(ids, torch.ones_like(ids)).double().mean() for ids in self.ids])
        return float((ours - torch.tensor(self.logits, dtype=torch.float64)).abs().max())

    def check(self, base: str, model: nn.Module) -> None:
        """Check that a reward model gives the logits of the head's own class.

        Raises:
            UnusableBase: If the mean of its heads differs by more than `SCORE_TOLERANCE`.
        """
        difference = self.difference(model)
        if not difference <= SCORE_TOLERANCE:
            raise UnusableBase(
                f"{base}: its scores as a reward model differ from those of its own class by up to {difference:.2g}: "
                f"the layers of its head are not known; {OFFER}"
            )


def folded(weight: Tensor, bias: Tensor | None, summed: Tensor) -> tuple[Tensor, Tensor]:
    """Fold the sum of the labels into the last layer: weight (labels, d) to (1, d), and bias to (1,)."""
    of_bias = torch.zeros(1) if bias is None else (summed @ bias.detach().float())[None]
    return (summed @ weight.detach().float())[None], of_bias


def labels_of(config: Any, count: int) -> tuple[str, ...]:
    """Return the labels' names, or transformers' own if the configuration does not name as many."""
    named: dict[int, str] = config.id2label or {}
    return tuple(str(named[i]) if len(named) == count and i in named else f"LABEL_{i}" for i in range(count))


def check_step_labels(base: str, count: int, choice: HeadChoice) -> None:
    """Raise `UnusableBase` if the scores of steps are to be combined, and are neither one label's nor two labels'."""
    if choice.step_scores in (None, "last"):
        return
    if count > 2 or choice.label_weights:
        raise UnusableBase(
            f"{base}: --step-scores {choice.step_scores} combines the probabilities of one of two labels, or the "
            f"logits of a single one; this head has {count} labels{', with weights' if choice.label_weights else ''}"
        )


def head_note(score: str, choice: HeadChoice) -> str:
    steps = f"at {choice.step_token!r}" if choice.step_scores else ""
    if choice.step_scores not in (None, "last"):
        steps = f"{steps}, the {choice.step_scores} of the steps"
    parts = [each for each in (score, steps) if each]
    return f"the checkpoint's{': ' if parts else ''}{' '.join(parts)}"


def random_ids(model: Any) -> tuple[Tensor, ...]:
    """Return sequences of random tokens without padding, of 2 tokens or more, each (1, S)."""
    config = model.config.get_text_config()
    chance, pad = random.Random(0), config.pad_token_id
    rows = model.get_input_embeddings().num_embeddings
    longest = min(_LONGEST, (getattr(config, "max_position_embeddings", None) or _LONGEST * 2) // 2)
    usable = [i for i in (chance.randrange(rows) for _ in range(10 * _SEQUENCES * longest)) if i != pad]
    lengths = [chance.randint(2, longest) for _ in range(_SEQUENCES)]
    return tuple(torch.tensor([usable[i * longest : i * longest + n]]) for i, n in enumerate(lengths))
