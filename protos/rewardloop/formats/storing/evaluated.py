"""The findings of evaluations, in ``<store>/<model>/.evaluated/<version>.json`` beside the immutable manifests.

The last evaluation of a version counts. It names the version's digest, so that it is never taken for that of another
version that got the same number.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self, TypeAlias

MOST_BYTES = 2**20
FOLDER = ".evaluated"
_LATEST_S = 253_402_300_799.0  # the end of the year 9999, which is as late as timestamps reach
# Object stores list the tag of an object's content, or the number of its write, under one of these names.
_TAGS = ("ETag", "etag", "generation", "md5Hash")
# A file that changed so shortly before it was read may change again without looking different.
_SETTLED_S = 2.0

_Known: TypeAlias = "tuple[Hashable, Evaluated | None]"


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
    """Keeps and reads what was found of one store's versions. Threads may share it.

    Args:
        filesystem: The store's fsspec file system.
        root: The store's path in it.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs, self._root = filesystem, root
        # By model and file: what was read, and how the file looked.
        self._known: dict[str, dict[str, _Known]] = {}

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
        found = self._read(self._path(model, version))
        return found if found is not None and found.digest == digest else None

    def read_each(
        self, model: str, digests: Mapping[str, str]
    ) -> tuple[dict[str, Evaluated], dict[str, EvaluatedError]]:
        """Read what was found of a model's versions. Files that look as they did at the last call are not read again.

        Args:
            model: The model.
            digests: The digest of each version.

        Returns:
            What was found, without versions of which nothing was, and why a file cannot be read, both by version.

        Raises:
            EvaluatedError: If the store cannot be read.
        """
        before, known = self._known.get(model, {}), dict[str, _Known]()
        found: dict[str, Evaluated] = {}
        failed: dict[str, EvaluatedError] = {}
        looks = self._looks(model)
        for version, digest in digests.items():
            path = self._path(model, version)
            if path not in looks:
                continue
            look = looks[path]
            try:
                it = before[path][1] if path in before and before[path][0] == look else self._read(path)
            except EvaluatedError as error:
                failed[version] = error
                continue
            if look is not None:
                known[path] = look, it
            if it is not None and it.digest == digest:
                found[version] = it
        self._known[model] = known
        return found, failed

    def _looks(self, model: str) -> dict[str, Hashable]:
        """Return how each file of a model looks, by its path: None if it may change without looking different."""
        folder = f"{self._root}/{model}/{FOLDER}"
        try:
            self._fs.invalidate_cache(folder)
            return {str(entry["name"]): _look(entry) for entry in self._fs.ls(folder, detail=True)}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except Exception as error:  # as above
            raise EvaluatedError(f"{folder} cannot be read: {error}") from error

    def _read(self, path: str) -> Evaluated | None:
        try:
            return Evaluated.from_json(self._fs.cat_file(path, 0, MOST_BYTES + 1))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        except Exception as error:  # as above
            raise EvaluatedError(f"{path} cannot be read: {error}") from error

    def _path(self, model: str, version: str) -> str:
        return f"{self._root}/{model}/{FOLDER}/{version}.json"


def _look(entry: Mapping[str, Any]) -> Hashable:
    """Return what differs between any two contents of a listed file; None if nothing does for certain."""
    if tags := tuple(str(entry[name]) for name in _TAGS if entry.get(name)):
        return tags
    if "ino" not in entry or "mtime" not in entry:
        return None
    times = (entry["mtime"], entry.get("created", 0.0))
    is_settled = time.time() - max(times) > _SETTLED_S
    return (entry["ino"], entry.get("size"), *times) if is_settled else None
