"""The file of mixtures: a TOML file with a version, in which each mixture names its parts.

    version = "2026-11-29"

    [mixtures.product.parts]
    love = { weight = 1.0 }                              # a reward model, by its name
    harmless = { floor = 0.0, penalty = 10.0 }           # a constraint: what is below pays 10 times the shortfall
    brief = { rule = "length", most = 120, weight = 0.3 }

A part is a reward model or a rule, and counts by its weight, by its floor, or by both. A mixture has no mixtures as
parts, so that none can hold itself.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from rewardloop.formats.mixing.faults import TellsAllFaults
from rewardloop.formats.mixing.names import POLICY, is_name
from rewardloop.formats.mixing.rules import FormatRule, LengthRule, ReferenceRule, Rule

MOST_MIXTURES = 64
MOST_PARTS = 16
_LARGEST = 1e6
_MOST_BYTES = 2**20


class BadMixtures(Exception):
    """Raised for a file of mixtures that cannot be used. The text has a line for each problem."""


class _Counted(TellsAllFaults):
    """How a part counts in the total.

    Attributes:
        weight: What its value is multiplied by; 0 if the part has a floor alone.
        floor: The least value that is wanted.
        penalty: What the total loses for each unit by which the value is below the floor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    weight: float = Field(0.0, ge=-_LARGEST, le=_LARGEST)
    floor: float | None = Field(None, ge=-_LARGEST, le=_LARGEST)
    penalty: float = Field(10.0, gt=0, le=_LARGEST)

    @classmethod
    def faults(cls, values: Mapping[str, Any]) -> Iterator[str]:
        yield from super().faults(values)
        has_floor = values.get("floor") is not None
        if not values.get("weight") and not has_floor:
            yield "has neither a weight nor a floor, so that it would not count"
        if "penalty" in values and not has_floor:
            yield "has a penalty, but no floor"


class ModelPart(_Counted):
    """A reward model; ``model`` is the part's own name if the file does not say it."""

    model: str = ""


class LengthPart(_Counted, LengthRule):
    """A rule about the length of a response."""


class FormatPart(_Counted, FormatRule):
    """A rule about the form of a response."""


class ReferencePart(_Counted, ReferenceRule):
    """A rule that compares a response with the request's reference."""


def _kind(value: Any) -> str:
    return str(value.get("rule", "model") if isinstance(value, dict) else getattr(value, "rule", "model"))


Part = Annotated[
    Annotated[ModelPart, Tag("model")]
    | Annotated[LengthPart, Tag("length")]
    | Annotated[FormatPart, Tag("format")]
    | Annotated[ReferencePart, Tag("reference")],
    Discriminator(_kind),
]


class Mixture(TellsAllFaults):
    """A mixture: its parts by name, in the order of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    parts: dict[str, Part] = Field(min_length=1, max_length=MOST_PARTS)

    @model_validator(mode="before")
    @classmethod
    def _name_models(cls, value: Any) -> Any:
        """Give each part that names no model its own name."""
        parts = value.get("parts") if isinstance(value, dict) else None
        if not isinstance(parts, dict):
            return value
        named = {
            name: {"model": name, **part} if isinstance(part, dict) and "rule" not in part else part
            for name, part in parts.items()
        }
        return {**value, "parts": named}

    @classmethod
    def faults(cls, values: Mapping[str, Any]) -> Iterator[str]:
        yield from super().faults(values)
        for name in _parts_of(values):
            if not is_name(name):
                yield f"{ascii(name)[:60]} is no name of a part"
        models = list(_models_of(values).values())
        for model in sorted({model for model in models if models.count(model) > 1}):
            yield f"two parts are the model {ascii(model)[:60]}: give one of them weight and floor"

    @property
    def models(self) -> Mapping[str, str]:
        """The model of each part that is one, by the part's name."""
        return {name: part.model for name, part in self.parts.items() if isinstance(part, ModelPart)}

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The other parts."""
        return {name: part for name, part in self.parts.items() if not isinstance(part, ModelPart)}

    @property
    def has_floors(self) -> bool:
        return any(part.floor is not None for part in self.parts.values())

    @property
    def needs_reference(self) -> bool:
        return any(isinstance(part, ReferencePart) for part in self.parts.values())

    @property
    def digest(self) -> str:
        """The sha256 (hex) of what the file says of this mixture."""
        said = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(said, sort_keys=False).encode()).hexdigest()


class MixtureFile(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: str = Field(pattern=r"^[A-Za-z0-9._-]{1,40}$")
    mixtures: dict[str, Mixture] = Field(min_length=1, max_length=MOST_MIXTURES)


def read_mixtures(path: Path, models: Collection[str]) -> MixtureFile:
    """Read the file.

    Args:
        path: The file.
        models: The reward models that there are.

    Raises:
        BadMixtures: The file cannot be read, breaks a rule, or names a model that there is not.
    """
    try:
        data = path.read_bytes()
        if len(data) > _MOST_BYTES:
            raise BadMixtures(f"{path}: has more than {_MOST_BYTES} bytes")
        content = tomllib.loads(data.decode())
    except OSError as error:
        raise BadMixtures(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadMixtures(f"{path}: {error}") from error
    strangers = list(_strangers(content, models))
    try:
        found = MixtureFile.model_validate(content)
    except ValidationError as error:
        raise BadMixtures("\n".join(f"{path}: {line}" for line in (*_lines(error), *strangers))) from error
    if strangers:
        raise BadMixtures("\n".join(f"{path}: {problem}" for problem in strangers))
    return found


def _strangers(content: Mapping[str, Any], models: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with the names of mixtures and of models in a file that may break other rules, too."""
    mixtures = content.get("mixtures")
    if not isinstance(mixtures, dict):
        return
    for name, mixture in islice(mixtures.items(), MOST_MIXTURES):
        place = f"mixtures.{_shown(name)}"
        if not is_name(name) or name == POLICY or name in models:
            yield f"{place}: is not valid as a name, or is that of a model"
        for part, model in _models_of(mixture).items():
            if model in mixtures and model not in models:
                yield f"{place}.parts.{_shown(part)}: {ascii(model)[:60]} is a mixture: parts are models and rules"
            elif model not in models:
                known = ", ".join(sorted(models))
                yield f"{place}.parts.{_shown(part)}: {ascii(model)[:60]} is no reward model here: {known}"


def _parts_of(mixture: Any) -> dict[str, Any]:
    """Return the first parts of a mixture as the file has it, at most as many as there may be."""
    parts = mixture.get("parts") if isinstance(mixture, Mapping) else None
    return dict(islice(parts.items(), MOST_PARTS)) if isinstance(parts, dict) else {}


def _models_of(mixture: Any) -> dict[str, str]:
    """Return the model of each part that is one and that names it by a text, by the part's name."""
    named = {
        name: part.get("model", name)
        for name, part in _parts_of(mixture).items()
        if isinstance(part, dict) and "rule" not in part
    }
    return {name: model for name, model in named.items() if isinstance(model, str)}


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:60]


def _lines(error: ValidationError) -> list[str]:
    tags = {"model", "length", "format", "reference"}
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        place = list(problem["loc"])
        if len(place) > 4 and place[2] == "parts" and place[4] in tags:
            del place[4]  # the kind of a part, which the file does not spell as a key
        reason = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "union_tag_invalid":
            reason = "rule is not length, format or reference"
        lines.append(": ".join(filter(None, (".".join(_shown(str(part)) for part in place), reason))))
    return lines
