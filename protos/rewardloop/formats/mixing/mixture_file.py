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
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from rewardloop.formats.mixing.names import POLICY, is_name
from rewardloop.formats.mixing.rules import FormatRule, LengthRule, ReferenceRule, Rule

MOST_MIXTURES = 64
MOST_PARTS = 16
_LARGEST = 1e6
_MOST_BYTES = 2**20


class BadMixtures(Exception):
    """Raised for a file of mixtures that cannot be used. The text has a line for each problem."""


class _Counted(BaseModel):
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

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if not self.weight and self.floor is None:
            raise ValueError("has neither a weight nor a floor, so that it would not count")
        if self.floor is None and "penalty" in self.model_fields_set:
            raise ValueError("has a penalty, but no floor")
        return self


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


class Mixture(BaseModel):
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

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if wrong := [name for name in self.parts if not is_name(name)]:
            raise ValueError(f"{ascii(wrong[0])[:60]} is no name of a part")
        models = list(self.models.values())
        if twice := {model for model in models if models.count(model) > 1}:
            raise ValueError(f"two parts are the model {min(twice)!r}: give one of them weight and floor")
        return self

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
        found = MixtureFile.model_validate(tomllib.loads(data.decode()))
    except OSError as error:
        raise BadMixtures(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadMixtures(f"{path}: {error}") from error
    except ValidationError as error:
        raise BadMixtures("\n".join(f"{path}: {line}" for line in _lines(error))) from error
    if problems := list(_strangers(found, models)):
        raise BadMixtures("\n".join(f"{path}: {problem}" for problem in problems))
    return found


def _strangers(found: MixtureFile, models: Collection[str]) -> list[str]:
    problems = []
    for name, mixture in found.mixtures.items():
        if not is_name(name) or name == POLICY or name in models:
            problems.append(f"mixtures.{ascii(name)[1:-1][:60]}: is not valid as a name, or is that of a model")
        for part, model in mixture.models.items():
            if model in found.mixtures and model not in models:
                problems.append(f"mixtures.{name}.parts.{part}: {model!r} is a mixture: parts are models and rules")
            elif model not in models:
                known = ", ".join(sorted(models))
                problems.append(f"mixtures.{name}.parts.{part}: {ascii(model)[:60]} is no reward model here: {known}")
    return problems


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
        lines.append(": ".join(filter(None, (".".join(ascii(str(part))[1:-1][:60] for part in place), reason))))
    return lines
