"""What a gate decides of a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rewardloop_trainer.reports.parts import Sample


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision of a gate.

    Attributes:
        passed: Whether the candidate may replace the live version.
        reasons: One line for each rule that the candidate broke; empty if it passed.
        figures: What the gate measured, by the names that a manifest gives it.
        examples: Held-out prompts on which the candidate is worse than the live version.
    """

    passed: bool
    reasons: tuple[str, ...]
    figures: Mapping[str, float]
    examples: tuple[Sample, ...] = ()
