"""A rubric: what a chat model is told to judge by, from a TOML file with a version.

    name = "helpful"
    version = "3"
    criteria = '''Prefer the response that answers what was asked, correctly and without padding.'''

The same version of a rubric always has the same text: signals name it.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SHIPPED = Path(__file__).with_name("helpful.toml")
SHIPPED_SAFE = Path(__file__).with_name("safe.toml")
_MOST_CHARACTERS = 20_000


class UnusableRubric(Exception):
    """Raised for a file that is no rubric; the message is one line and names the file."""


class _File(BaseModel):
    """The file's keys; others are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=32, pattern=r"^[\w.-]+$")
    version: str = Field(min_length=1, max_length=16, pattern=r"^[\w.-]+$")
    criteria: str = Field(min_length=1, max_length=_MOST_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Rubric:
    """What to judge by.

    Attributes:
        name: Its name.
        version: Changes with every change of the text.
        criteria: What makes a response better.
    """

    name: str
    version: str
    criteria: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises `UnusableRubric`."""
        try:
            found = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UnusableRubric(f"{path}: {error.strerror or error}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UnusableRubric(f"{path}: is not TOML: {error}") from error
        except ValidationError as error:
            raise UnusableRubric(f"{path}: {problems(error)}") from error
        return cls(found.name, found.version, found.criteria.strip())

    @property
    def label(self) -> str:
        """Name and version in one word."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.criteria.encode()).hexdigest()


def problems(error: ValidationError) -> str:
    """Return every problem of a file's contents in one line, each with the key that it is about."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {'unknown key' if each['type'] == 'extra_forbidden' else each['msg']}"
        for each in error.errors()
    ).removeprefix(": ")
