"""Measures how well a reward model orders held-out pairs, beside how well length alone would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from rewardloop.formats.text import Encoded, Encoder, RefusedConversation
from rewardloop_trainer.data.length_share import NO_SHARE, LengthShare, bounded_length_slope, seen_lengths
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.model import RewardModel

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Figures on held-out pairs; NaN if there are no pairs to compute them on. Shares are from 0 to 1.

    Attributes:
        pairs: Number of pairs.
        accuracy: Share of pairs whose chosen response has the higher logit; equal logits count half.
        accuracy_shorter_won: The same for pairs whose chosen response has fewer characters.
        shorter_won: Number of those pairs.
        length_baseline: The accuracy of always preferring the longer response.
        loss: Mean Bradley-Terry loss of the head-mean logits, in nats.
        head_spread: Mean standard deviation, over the heads, of a pair's margin.
    """

    pairs: int
    accuracy: float
    accuracy_shorter_won: float
    shorter_won: int
    length_baseline: float
    loss: float
    head_spread: float

    def figures(self, prefix: str) -> dict[str, float]:
        """The finite figures, for the metrics of a manifest, under names that start with ``prefix``."""
        named = {
            "pairs": float(self.pairs),
            "accuracy": self.accuracy,
            "accuracy_shorter_won": self.accuracy_shorter_won,
            "length_baseline": self.length_baseline,
            "loss": self.loss,
            "head_spread": self.head_spread,
        }
        return {f"{prefix}_{name}": value for name, value in named.items() if np.isfinite(value)}


def head_margins(model: RewardModel, encoder: Encoder, pairs: Sequence[Pair], token_budget: int = 4096) -> Floats:
    """The chosen response's logit minus the rejected one's, (pairs, k). Sequences that are too long are shortened."""
    sequences = _sequences(encoder, pairs) if pairs else []
    was_training = model.training
    model.eval()
    with torch.no_grad():  # not inference_mode: a divided model's weights are gathered here and learned from later
        logits = logits_of(model, sequences, encoder.format.pad, token_budget).double().numpy()
    model.train(was_training)
    margins: Floats = logits[0::2] - logits[1::2]
    return margins


def pair_margins(
    model: RewardModel,
    encoder: Encoder,
    pairs: Sequence[Pair],
    length: LengthShare = NO_SHARE,
    token_budget: int = 4096,
) -> Floats:
    """Margins of the head-mean logits, without the share of length, (pairs,). The gate compares these."""
    margins: Floats = head_margins(model, encoder, pairs, token_budget).mean(1)
    return without_length(margins, encoder, pairs, length)


def without_length(margins: Floats, encoder: Encoder, pairs: Sequence[Pair], length: LengthShare) -> Floats:
    """Margins (pairs,) without the share of length."""
    return margins - length.slope * length.ratios(_sequences(encoder, pairs)) if length.slope else margins


def fit_length_share(
    model: RewardModel, encoder: Encoder, pairs: Sequence[Pair], seen: Sequence[Pair], control: float
) -> LengthShare:
    """Fit the share of length in a model's logits; nothing is taken off without ``control``.

    Args:
        model: The model.
        encoder: Its tokenizer and text layout.
        pairs: The pairs on which the slope is fitted.
        seen: Pairs of the training data, whose lengths bound those that are told apart.
        control: Most of the dependence on length to remove, from 0 to 1.
    """
    if control == 0 or not pairs:
        return NO_SHARE
    bounds = seen_lengths([s.response_tokens for s in _sequences(encoder, seen)])
    ratios = bounds.ratios(_sequences(encoder, pairs))
    return replace(bounds, slope=bounded_length_slope(pair_margins(model, encoder, pairs), ratios, control))


def _sequences(encoder: Encoder, pairs: Sequence[Pair]) -> list[Encoded]:
    """Return the chosen and the rejected sequence of each pair in turn. Raises `RefusedConversation`."""
    found: list[Encoded] = []
    for group in encoder.groups([(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]):
        if isinstance(group, RefusedConversation):
            raise group
        found += group
    return found


def measure(pairs: Sequence[Pair], margins: Floats) -> HeldOut:
    """The figures of ``margins``, (pairs, k), from `head_margins` on the same pairs."""
    mean = margins.mean(1)
    shorter = np.array([len(p.chosen) < len(p.rejected) for p in pairs], dtype=bool)
    longer = np.array([len(p.chosen) > len(p.rejected) for p in pairs], dtype=bool)
    correct = correctness(mean)
    length_right = longer + 0.5 * ~(longer | shorter)
    return HeldOut(
        pairs=len(pairs),
        accuracy=_mean(correct),
        accuracy_shorter_won=_mean(correct[shorter]),
        shorter_won=int(shorter.sum()),
        length_baseline=_mean(length_right),
        loss=_mean(np.logaddexp(0.0, -mean)),
        head_spread=_mean(margins.std(1)),
    )


def correctness(margins: Floats) -> Floats:
    """1 for a positive margin, 1/2 for a margin of 0, otherwise 0; the shape of ``margins``."""
    right: Floats = (margins > 0) + 0.5 * (margins == 0)
    return right


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else float("nan")
