"""Makes one score of the labels of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewardloop_trainer.data.base_text import UnusableBase

_GOOD = frozenset(
    (
        "positive",
        "pos",
        "good",
        "chosen",
        "preferred",
        "yes",
        "true",
        "correct",
        "helpful",
        "relevant",
        "safe",
        "entailment",
    )
)
_BAD = frozenset(
    (
        "negative",
        "neg",
        "bad",
        "rejected",
        "no",
        "false",
        "incorrect",
        "unhelpful",
        "irrelevant",
        "unsafe",
        "toxic",
        "not_entailment",
    )
)
_NAMED = 20  # labels that an error names


@dataclass(frozen=True, slots=True)
class LabelSum:
    """A score as a sum of label logits.

    Attributes:
        weights: One per label, in the order of the classifier's outputs.
        note: The sum in words; empty for a single label.
    """

    weights: tuple[float, ...]
    note: str


def label_sum(base: str, labels: Sequence[str], weights: Mapping[str, float]) -> LabelSum:
    """Return how the labels of a head make one score.

    Args:
        base: Named in errors.
        labels: Names of the head's outputs, in order.
        weights: Weights by label; empty if none were chosen.

    Raises:
        UnusableBase: If a weight has no label, or there are more than two labels and no weights.
    """
    named = ", ".join(labels[:_NAMED]) + (f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else "")
    if weights:
        if unknown := sorted(set(weights) - set(labels)) or len(set(labels)) < len(labels):
            wrong = f"--label-weights names {', '.join(unknown)}" if isinstance(unknown, list) else "labels share names"
            raise UnusableBase(f"{base}: {wrong}; the labels are {named}")
        terms = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
        return LabelSum(tuple(weights.get(label, 0.0) for label in labels), terms)
    if len(labels) == 1:
        return LabelSum((1.0,), "")
    if len(labels) == 2:
        good = _better_of(labels[0].lower(), labels[1].lower())
        return LabelSum((-1.0, 1.0) if good else (1.0, -1.0), f"{labels[good]} - {labels[1 - good]}")
    raise UnusableBase(
        f"{base}: a classifier with {len(labels)} labels, and which sum of them is the score is not known: "
        f"--label-weights NAME=WEIGHT,... says it (the labels are {named}); --new-heads draws new heads instead"
    )


def _better_of(first: str, second: str) -> int:
    """Return which of two labels raises the score: the second, unless the names clearly say the first."""
    says_first, says_second = first in _GOOD or second in _BAD, second in _GOOD or first in _BAD
    return 0 if says_first and not says_second else 1
