"""The total of a mixture: a weighted sum, less what responses below a floor pay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewardloop.formats.mixing.mixture_file import Mixture


@dataclass(frozen=True, slots=True)
class PartValues:
    """What one part says of each response.

    Attributes:
        values: A model's calibrated scores, or what a rule says.
        uncertainties: The spread of the model's heads, on the scale of the values; empty for a rule.
    """

    values: Sequence[float]
    uncertainties: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Total:
    """What the mixture says of one response.

    Attributes:
        score: sum(weight * value) - sum(penalty * shortfall below the floor).
        uncertainty: The root of the summed squares of the parts' uncertainties, each by how much the score moves with
            its value.
        meets_floors: Every value is at or above its floor.
    """

    score: float
    uncertainty: float
    meets_floors: bool


class NotFinite(Exception):
    """Raised when a part, or the total, is no finite number."""


def totals_of(mixture: Mixture, said: Mapping[str, PartValues]) -> list[Total]:
    """Return the total of each response.

    Args:
        mixture: The mixture.
        said: What each of its parts says, by the part's name. All parts speak of the same responses.

    Raises:
        NotFinite: A value, or a total, is NaN or infinite.
        KeyError: A part says nothing.
    """
    found = []
    for i in range(len(next(iter(said.values())).values)):
        score = square = 0.0
        meets = True
        for name, part in mixture.parts.items():
            value = said[name].values[i]
            slope = part.weight
            score += part.weight * value
            if part.floor is not None and not value >= part.floor:
                meets = False
                score -= part.penalty * (part.floor - value)
                slope += part.penalty
            if said[name].uncertainties:
                spread = slope * said[name].uncertainties[i]
                square += spread * spread  # where ** would raise OverflowError
        if not (math.isfinite(score) and math.isfinite(square)):
            raise NotFinite
        found.append(Total(score, math.sqrt(square), meets))
    return found
