"""The settings that say which layers of a base become its score. Imports no torch, for a fast --help."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import BaseModel, Field, field_validator

_WEIGHTED = re.compile(r"\s*(?P<name>\S|\S.*?\S)\s*=\s*(?P<weight>[-+.\w]+)\s*(?:,|$)")


class HeadChoice(BaseModel, extra="forbid"):
    """Which layers of a base become its score."""

    new_heads: bool = Field(
        False, description="draw new score heads, even if the checkpoint has trained ones; else such a base is refused"
    )
    label_weights: str = Field(
        "",
        description="NAME=WEIGHT,...: the score of a classifier with several labels is this sum of their logits; "
        "default for two labels: their difference",
    )
    step_scores: Literal["last", "mean", "min", "product"] | None = Field(
        None, description="how the step scores of a token classifier become one"
    )
    step_token: str = Field("", description="token at which a token classifier scores a step: its id, or its text")
    step_separator: str = Field(
        "\\n\\n",
        description="what stands between two steps in an answer's text; the step token is put in its place",
        min_length=1,
    )
    trust_remote_code: bool = Field(
        False, description="run the base's own code while it is exported, to compare its scores with the graph's"
    )

    @field_validator("label_weights")
    @classmethod
    def _is_readable(cls, text: str) -> str:
        if text and not any(parse_weights(text).values()):
            raise ValueError("every weight is 0")
        return text


def parse_weights(text: str) -> dict[str, float]:
    """Read ``NAME=WEIGHT,...``. A name may hold commas; it ends at the first ``=`` with a number behind it.

    Raises:
        ValueError: The text has another form, or a weight is not finite.
    """
    found: dict[str, float] = {}
    rest = text
    while rest:
        part = _WEIGHTED.match(rest)
        if part is None or part["name"] in found:
            raise ValueError(f"{rest!r} is not NAME=WEIGHT, or the name comes twice")
        found[part["name"]] = float(part["weight"])
        if not math.isfinite(found[part["name"]]):
            raise ValueError(f"the weight of {part['name']!r} is not finite")
        rest = rest[part.end() :]
    return found
