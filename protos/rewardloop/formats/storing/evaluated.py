"""The findings of evaluations, in ``<store>/<model>/.evaluated/<version>.json`` beside the immutable manifests.

The last evaluation of a version counts. It names the version's digest, so that it is never taken for that of another
version that got the same number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

MOST_BYTES = 2**20
FOLDER = ".evaluated"
_LATEST_S = 253_402_300_799.0  # the end of the year 9999, which is as late as timestamps reach


class EvaluatedError(Exception):
    """Raised when what was found cannot be kept or read."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The findings of an evaluation of a version.

    Attributes:
        digest: Of the version.
        time: When, in Unix seconds.
        against: What it was compared with; "" for nothing.
        figures: Figures by name, all finite.
        report_id: The report in the store; "" if it is in none.
    """

    digest: str
    time: float
    against: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    report_id: str = ""

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what `ModelStore` keeps. Raises ValueError, TypeError, OverflowError and RecursionError otherwise."""
        if len(text) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        found = cls(**json.loads(text))
        if not isinstance(found.figures, dict) or not all(
            isinstance(value, int | float) and math.isfinite(value) for value in (found.time, *found.figures.values())
        ):
            raise ValueError("figures are finite numbers")
        if not 0 <= found.time <= _LATEST_S:
            raise ValueError("the time is no time")
        names = (found.digest, found.against, found.report_id, *found.figures)
        if not all(isinstance(name, str) for name in names):
            raise ValueError("names are texts")
        "".join(names).encode()  # raises ValueError for a surrogate, which no message can hold
        return found


class EvaluatedVersions:
    """Keeps and reads what was found of one store's versions.

    Args:
        filesystem: The store's fsspec file system.
        root: The store's path in it.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs, self._root = filesystem, root

    def keep(self, model: str, version: str, found: Evaluated) -> None:
        """Keep what was found, in the place of what was found before. Raises EvaluatedError."""
        path = self._path(model, version)
        try:
            data = json.dumps(asdict(found), sort_keys=True, allow_nan=False).encode()
            Evaluated.from_json(data)
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data)
        except Exception as error:  # each file system has exceptions of its own
            raise EvaluatedError(f"{path} cannot be written: {error}") from error

    def read(self, model: str, version: str, digest: str) -> Evaluated | None:
        """Return what was found of the version with this digest; None if nothing was, or it is damaged.

        Raises:
            EvaluatedError: If the store cannot be read.
        """
        path = self._path(model, version)
        try:
            found = Evaluated.from_json(self._fs.cat_file(path, 0, MOST_BYTES + 1))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        except Exception as error:  # as above
            raise EvaluatedError(f"{path} cannot be read: {error}") from error
        return found if found.digest == digest else None

    def _path(self, model: str, version: str) -> str:
        return f"{self._root}/{model}/{FOLDER}/{version}.json"
