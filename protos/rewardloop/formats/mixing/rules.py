"""Rule rewards: what a text says of a response without a model.

A rule looks at a text in time that grows with its length alone. Callers choose the texts, so there are no patterns
whose matching can take longer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field

from rewardloop.formats.mixing.faults import TellsAllFaults

_Text = Annotated[str, Field(min_length=1, max_length=200)]
_NUMBER = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?")
_MOST_DIGITS = 100


class _Rule(TellsAllFaults):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class LengthRule(_Rule):
    """0 for a response of a wanted length. Outside, minus the distance as a share of the bound, at least -1."""

    rule: Literal["length"]
    unit: Literal["words", "characters"] = "words"
    least: int = Field(0, ge=0)
    most: int | None = Field(None, ge=1)

    @classmethod
    def faults(cls, values: Mapping[str, Any]) -> Iterator[str]:
        yield from super().faults(values)
        least, most = values.get("least", 0), values.get("most")
        if not least and most is None:
            yield "give least, most, or both"
        if isinstance(least, int) and isinstance(most, int) and least > most:
            yield "least is above most"

    def value(self, response: str, reference: str) -> float:
        size = len(response.split()) if self.unit == "words" else len(response)
        if size < self.least:
            return (size - self.least) / self.least
        if self.most is not None and size > self.most:
            return -min(1.0, (size - self.most) / self.most)
        return 0.0


class FormatRule(_Rule):
    """1 for a response that keeps to all that is asked for, else 0.

    Attributes:
        json_text: The response is JSON; "object": a JSON object.
        starts_with: What it begins with, white space aside.
        ends_with: What it ends with, white space aside.
        contains: Texts that it contains, every one.
        lacks: Texts that it does not contain, in any case of letters.
    """

    rule: Literal["format"]
    json_text: Literal["any", "object"] | None = Field(None, alias="json")
    starts_with: _Text | None = None
    ends_with: _Text | None = None
    contains: list[_Text] = Field([], max_length=32)
    lacks: list[_Text] = Field([], max_length=32)

    @classmethod
    def faults(cls, values: Mapping[str, Any]) -> Iterator[str]:
        yield from super().faults(values)
        if not any(values.get(name) for name in ("json", "starts_with", "ends_with", "contains", "lacks")):
            yield "give json, starts_with, ends_with, contains or lacks"

    def value(self, response: str, reference: str) -> float:
        text, lowered = response.strip(), response.casefold()
        return float(
            (self.json_text is None or _is_json(text, is_object=self.json_text == "object"))
            and text.startswith(self.starts_with or "")
            and text.endswith(self.ends_with or "")
            and all(each in response for each in self.contains)
            and not any(each.casefold() in lowered for each in self.lacks)
        )


class ReferenceRule(_Rule):
    """1 for a response that agrees with the request's reference, else 0.

    "exact" compares the texts, white space and case of letters aside; "contains" looks for the reference in the
    response in the same way; "number" compares the last number of the response with the last number of the reference.
    """

    rule: Literal["reference"]
    compare: Literal["exact", "contains", "number"]

    def value(self, response: str, reference: str) -> float:
        if self.compare == "number":
            said, wanted = _last_number(response), _last_number(reference)
            return float(said is not None and wanted is not None and math.isclose(said, wanted, rel_tol=1e-9))
        said_text, wanted_text = _plain(response), _plain(reference)
        return float(said_text == wanted_text if self.compare == "exact" else wanted_text in said_text)


Rule: TypeAlias = LengthRule | FormatRule | ReferenceRule


def _is_json(text: str, *, is_object: bool) -> bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or not is_object


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _last_number(text: str) -> float | None:
    last = ""
    for found in _NUMBER.finditer(text):
        last = found[0]
    return float(last.replace(",", "")) if 0 < len(last) <= _MOST_DIGITS else None
