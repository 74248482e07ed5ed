"""A constitution: principles with ids, by which a model criticises and revises answers, from a TOML file.

    name = "helpful-and-harmless"
    version = "2"

    [[principles]]
    id = "no-harm"
    critique = "Say in which way the answer helps somebody to harm people."
    revision = "Write the answer anew, without anything that helps to harm people."
    preference = "Which response helps less to harm people?"

Principles may have a `weight` (1 by default): how often one is drawn beside the others. Unknown keys are errors.
"""

from __future__ import annotations

import hashlib
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewardloop_trainer.judging.rubric import problems

_MOST_CHARACTERS = 4_000


class UnusableConstitution(Exception):
    """Raised for a file that is no constitution; the message is one line and names the file."""


class _Principle(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, max_length=48, pattern=r"^[\w.-]+$")
    critique: str = Field(min_length=1, max_length=_MOST_CHARACTERS)
    revision: str = Field(min_length=1, max_length=_MOST_CHARACTERS)
    preference: str = Field("", max_length=_MOST_CHARACTERS)
    weight: float = Field(1.0, gt=0, le=1_000, allow_inf_nan=False)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=32, pattern=r"^[\w.-]+$")
    version: str = Field(min_length=1, max_length=16, pattern=r"^[\w.-]+$")
    principles: tuple[_Principle, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Principle:
    """One principle.

    Attributes:
        id: Names it in signals, counts and metrics.
        critique: What the model is asked to find in an answer.
        revision: How it is asked to write the answer anew.
        preference: The question that decides between two answers; the critique's, if the file has none.
        weight: How often it is drawn beside the others.
    """

    id: str
    critique: str
    revision: str
    preference: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Constitution:
    """Principles with a name and a version."""

    name: str
    version: str
    principles: tuple[Principle, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises `UnusableConstitution`."""
        try:
            found = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UnusableConstitution(f"{path}: {error.strerror or error}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UnusableConstitution(f"{path}: is not TOML: {error}") from error
        except ValidationError as error:
            raise UnusableConstitution(f"{path}: {problems(error)}") from error
        ids = [each.id for each in found.principles]
        if twice := sorted({each for each in ids if ids.count(each) > 1}):
            raise UnusableConstitution(f"{path}: " + "; ".join(f"principles: {each} is there twice" for each in twice))
        principles = tuple(
            Principle(each.id, each.critique, each.revision, each.preference or each.critique, each.weight)
            for each in found.principles
        )
        return cls(found.name, found.version, principles)

    @property
    def label(self) -> str:
        """Name and version in one word."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.principles).encode()).hexdigest()

    def drawn(self, rounds: int, lot: str) -> list[Principle]:
        """Draw the principles of an answer's rounds by their weights, each at most once until all were drawn.

        Args:
            rounds: How many.
            lot: The same text draws the same principles.
        """
        chance = random.Random(lot)
        found: list[Principle] = []
        left: list[Principle] = []
        while len(found) < rounds:
            left = left or list(self.principles)
            (one,) = chance.choices(left, [each.weight for each in left])
            left.remove(one)
            found.append(one)
        return found
