"""What the outputs of a sequence classifier are: heads of their own, or labels that make one score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewardloop_trainer.reward.heads.labels import label_sum
from rewardloop_trainer.reward.heads.start import labels_of


@dataclass(frozen=True, slots=True)
class ClassifierHeads:
    """What the outputs of a classifier are.

    Attributes:
        count: Heads of the version.
        weights: How the outputs add up to one score; None if each is a head.
        note: The choice, for the manifest.
    """

    count: int
    weights: tuple[float, ...] | None
    note: str


def classifier_heads(
    base: str, config: Any, outputs: int, weights: Mapping[str, float], *, is_ensemble: bool, whose: str
) -> ClassifierHeads:
    """Return what the outputs are.

    Args:
        base: Named in errors.
        config: Its configuration, which names the labels.
        outputs: How many outputs there are.
        weights: Weights by label; empty if none were chosen.
        is_ensemble: Each output is a head.
        whose: Who has the outputs, for the note.

    Raises:
        UnusableBase: More than two are labels and no weights are said.
    """
    if is_ensemble or outputs == 1:
        return ClassifierHeads(outputs, None, f"{whose} own score" if outputs == 1 else f"{whose} {outputs} scores")
    labels = label_sum(base, labels_of(config, outputs), weights)
    return ClassifierHeads(1, labels.weights, f"a sum of {whose} {outputs} scores: {labels.note}")
