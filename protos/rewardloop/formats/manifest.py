"""The manifest of a version: what it is, where it came from, how it measured, and the sha256 of each of its files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from rewardloop.formats.store_errors import CorruptVersion

FORMAT_VERSION = 1
# A server warms a version with one row of its maximum length. This bounds the memory that a manifest can claim.
MAX_TOKENS = 2**20
_LARGEST = 1e300


@dataclass(frozen=True, slots=True)
class Calibration:
    """Maps a version's raw logits onto the common scale:
    ``score = scale * (logit - length_slope * log(response_tokens)) + offset``.

    ``length_slope`` removes what the model credits to length alone; 0 removes nothing. ``least_tokens`` and
    ``most_tokens`` bound the lengths on which it was fitted, and a response outside counts as the nearest of them; 0:
    no bound.
    """

    scale: float = 1.0
    offset: float = 0.0
    length_slope: float = 0.0
    least_tokens: int = 0
    most_tokens: int = 0

    def score(self, logit: float, response_tokens: int) -> float:
        """Return the calibrated score of a logit.

        Args:
            logit: Raw output of the model.
            response_tokens: Tokens of the whole response, its end marker included, before any shortening; at least 1.
        """
        counted = max(response_tokens, self.least_tokens)
        counted = min(counted, self.most_tokens) if self.most_tokens else counted
        return self.scale * (logit - self.length_slope * math.log(counted)) + self.offset

    def stated(self) -> dict[str, float]:
        """Return what a manifest says and the digest covers: no bound that is not set, as before there were any."""
        return {name: value for name, value in asdict(self).items() if value or not name.endswith("_tokens")}


@dataclass(frozen=True, slots=True)
class DataRange:
    """The part of the ledger that a version learned from.

    ``arrivals`` holds the arrival times (Unix seconds) of at most 1,000 signals that are new since the parent version.
    """

    first_stream_id: str
    last_stream_id: str
    signals: int
    arrivals: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Trunk:
    """Number and digest of the version over whose graph a delta runs."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version is, where it came from and how it measured.

    Attributes:
        digest: Digest of files, trunk, calibration, text format and maximum length. Two versions with the same digest
            give the same scores.
        files: The sha256 (hex) of every file, by its path within the version.
        data: The part of the ledger that it learned from; None for an exported base.
        metrics: Figures of training and gates, by name.
        precision: Number format of the graph's matrix products.
        trunk: Set on a delta, which is a reward version that holds only an adapter (`ADAPTER`) and runs over the graph
            of another version. That version is no delta itself.
    """

    model: str
    version: str = ""
    digest: str = ""
    created_at: str = ""
    parent: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    data: DataRange | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None
    text_format: Mapping[str, Any] = field(default_factory=dict)
    max_length: int = 512
    heads: int = 1
    base: str = ""
    seed: int | None = None
    code_version: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    precision: str = "float32"
    trunk: Trunk | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        said = asdict(self) | {"calibration": self.calibration.stated() if self.calibration else None}
        return json.dumps(said, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest. Raises CorruptVersion for a text that is no manifest of a known format version."""
        try:
            raw = json.loads(text)
            json.dumps(raw, ensure_ascii=False).encode()  # raises for a lone surrogate, which no message can carry
            if raw["format_version"] != FORMAT_VERSION:
                raise CorruptVersion(f"manifest format version {raw['format_version']!r} is not {FORMAT_VERSION}")
            if raw["data"] is not None:
                raw["data"] = DataRange(**{**raw["data"], "arrivals": tuple(raw["data"]["arrivals"])})
            if raw["calibration"] is not None:
                raw["calibration"] = Calibration(**raw["calibration"])
            if raw.get("trunk") is not None:
                raw["trunk"] = Trunk(**raw["trunk"])
            manifest = cls(**raw)
            wrong = sorted(_wrong_fields(manifest))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CorruptVersion(f"the manifest cannot be read: {ascii(str(error))[1:-1]}") from error
        if wrong:
            raise CorruptVersion(
                f"the manifest cannot be read: {', '.join(wrong)} have the wrong type or an impossible number"
            )
        return manifest


def digest_of(manifest: Manifest, files: Mapping[str, str]) -> str:
    """Return the digest of everything that decides the scores; see `Manifest`."""
    covered = {
        "files": dict(files),
        "calibration": manifest.calibration.stated() if manifest.calibration else None,
        "text_format": dict(manifest.text_format),
        "max_length": manifest.max_length,
    }
    if manifest.trunk is not None:
        covered["trunk"] = asdict(manifest.trunk)
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def _wrong_fields(manifest: Manifest) -> list[str]:
    """Return the names of the fields that have the wrong type, or a number that no version can have."""
    data, calibration, trunk = manifest.data, manifest.calibration, manifest.trunk
    texts = ("model", "version", "digest", "base", "code_version", "precision")
    sound = {name: isinstance(getattr(manifest, name), str) for name in texts}
    sound |= {
        "created_at": isinstance(manifest.created_at, str) and _is_time(manifest.created_at),
        "parent": manifest.parent is None or isinstance(manifest.parent, str),
        "files": _maps_to(manifest.files, str),
        "notes": _maps_to(manifest.notes, str),
        "metrics": _maps_to(manifest.metrics, int, float) and all(map(_is_double, manifest.metrics.values())),
        "text_format": isinstance(manifest.text_format, dict),
        "max_length": _is_count(manifest.max_length, MAX_TOKENS),
        "heads": _is_count(manifest.heads, MAX_TOKENS),
        "seed": manifest.seed is None or isinstance(manifest.seed, int),
        "data": data is None
        or (
            isinstance(data.first_stream_id, str)
            and isinstance(data.last_stream_id, str)
            and isinstance(data.signals, int)
            and all(_is_finite(arrival) for arrival in data.arrivals)
        ),
        "calibration": calibration is None
        or (
            all(_is_finite(value) for value in asdict(calibration).values())
            and all(_bounds_tokens(value) for value in (calibration.least_tokens, calibration.most_tokens))
        ),
        "trunk": trunk is None or (isinstance(trunk.version, str) and isinstance(trunk.digest, str)),
    }
    return [name for name, is_sound in sound.items() if not is_sound]


def _is_time(text: str) -> bool:
    try:
        return not text or datetime.fromisoformat(text).year > 1
    except ValueError:
        return False


def _maps_to(value: object, *kinds: type) -> bool:
    return isinstance(value, dict) and all(isinstance(each, kinds) for each in value.values())


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _bounds_tokens(value: object) -> bool:
    return _is_count(value, MAX_TOKENS) or (value == 0 and isinstance(value, int))


def _is_double(value: float) -> bool:
    """Return whether a number fits a double. An integer may be too large; NaN and the infinities fit."""
    return isinstance(value, float) or abs(value) <= _LARGEST


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= _LARGEST


def reads_alike(one: Manifest, other: Manifest) -> bool:
    """Return whether both versions turn the same text into the same token ids."""
    return (
        one.files.get("tokenizer.json") == other.files.get("tokenizer.json")
        and one.text_format == other.text_format
        and one.max_length == other.max_length
    )
