"""The model store: immutable version directories, ``<store>/<model>/<version>/``.

A version is written under a temporary name, hashed, fsynced and renamed, so a reader sees a whole version or
none. On object stores, which cannot rename, the manifest is uploaded last: a directory without one is no version.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

MODELS = ("reward", "policy")
MANIFEST = "manifest.json"
ADAPTER = "adapter.onnx_adapter"
FORMAT_VERSION = 1


class StoreError(Exception):
    """Base of the store's errors."""


class VersionNotFound(StoreError):
    """The store has no such version."""


class CorruptVersion(StoreError):
    """A file of the version is missing, added or altered, or its manifest cannot be read."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Maps a version's raw logits onto the common scale:
    ``score = scale * (logit - length_slope * log(response_tokens)) + offset``.

    ``length_slope`` takes back what the model gives to length alone; 0 leaves it.
    """

    scale: float = 1.0
    offset: float = 0.0
    length_slope: float = 0.0

    def score(self, logit: float, response_tokens: int) -> float:
        """``response_tokens``: of the whole response, end marker included, before any shortening; at least 1."""
        return self.scale * (logit - self.length_slope * math.log(response_tokens)) + self.offset


@dataclass(frozen=True, slots=True)
class DataRange:
    """The part of the ledger that a version learned from.

    ``arrivals``: arrival times (Unix seconds) of at most 1,000 of the signals that are new since the parent.
    """

    first_stream_id: str
    last_stream_id: str
    signals: int
    arrivals: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Trunk:
    """The version, by number and digest, over whose graph a delta runs."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version is, where it came from and how it measured.

    ``files``: sha256 (hex) of every file by its path within the version. ``trunk``: set on a delta, a reward version
    that holds only an adapter (`ADAPTER`) and runs over the graph of another version, itself no delta.
    ``precision``: of the graph's matrix products. ``digest`` covers files, trunk, calibration, text format and maximum
    length: two versions with one digest give the same scores.
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
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises `CorruptVersion` on anything that is no manifest of a known format version."""
        try:
            raw = json.loads(text)
            if raw["format_version"] != FORMAT_VERSION:
                raise CorruptVersion(f"manifest format version {raw['format_version']!r} is not {FORMAT_VERSION}")
            if raw["data"] is not None:
                raw["data"] = DataRange(**{**raw["data"], "arrivals": tuple(raw["data"]["arrivals"])})
            if raw["calibration"] is not None:
                raw["calibration"] = Calibration(**raw["calibration"])
            if raw.get("trunk") is not None:
                raw["trunk"] = Trunk(**raw["trunk"])
            return cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptVersion(f"the manifest cannot be read: {error}") from error


class ModelStore:
    """Reads and publishes versions under ``url``: a local path or any fsspec URL such as ``s3://bucket/models``.

    Remote versions are fetched once into ``cache_dir`` (default: a directory under the system's temporary one).
    """

    def __init__(self, url: str | Path, cache_dir: Path | None = None) -> None:
        self.url = str(url)
        self._fs, root = fsspec.core.url_to_fs(self.url)
        self._root = str(root).rstrip("/")
        self._is_local = "file" in _protocols(self._fs)
        self._cache = cache_dir or Path(tempfile.gettempdir()) / "rewardloop-store" / _sha256(self.url.encode())[:16]

    def versions(self, model: str) -> list[int]:
        """Version numbers, ascending; empty where the store has none."""
        return [v for v in self._numbers(model) if self._fs.exists(self._of(model, v, MANIFEST))]

    def _numbers(self, model: str) -> list[int]:
        """Of all directories, those without a manifest included: their writer died, and their names are taken."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(f"{self._root}/{model}", detail=False)
        except FileNotFoundError:
            return []
        names = [str(e).rstrip("/").rsplit("/", 1)[-1] for e in entries]
        return sorted(int(n) for n in names if n.isdecimal())

    def manifest(self, model: str, version: int | str) -> Manifest:
        """Raises `VersionNotFound` or `CorruptVersion`."""
        if not str(version).isdecimal():
            raise VersionNotFound(f"{version!r} is not a version of {model}: versions are integers")
        try:
            text = self._fs.cat_file(self._of(model, version, MANIFEST)).decode()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VersionNotFound(f"the store has no version {version} of {model}") from error
        except UnicodeDecodeError as error:
            raise CorruptVersion(f"manifest of {model} {version}: not UTF-8") from error
        manifest = Manifest.from_json(text)
        if (manifest.model, manifest.version) != (model, str(version)):
            raise CorruptVersion(f"{model} {version} holds the manifest of {manifest.model} {manifest.version}")
        return manifest

    def path(self, model: str, version: int | str) -> str:
        """Where the version lives in the store."""
        return self._of(model, version)

    def fetch(self, model: str, version: int | str) -> Path:
        """A local directory with the version, every file's sha256 checked.

        Raises `VersionNotFound` or `CorruptVersion`.
        """
        manifest = self.manifest(model, version)
        if self._is_local:
            directory = Path(self._of(model, version))
            _verify(directory, manifest)
            return directory
        directory = self._cache / model / f"{manifest.version}-{manifest.digest[:16]}"
        if not directory.exists():
            self._download(manifest, directory)
        _verify(directory, manifest)
        return directory

    def publish(
        self,
        manifest: Manifest,
        write: Callable[[Path], None],
        held: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Manifest:
        """Store a new version: ``write`` fills a directory, ``manifest`` gives the fields that are not derived.

        Returns the manifest with version, digest, files and created_at filled in. The version becomes visible within
        ``held()``. Whatever that or ``write`` raises goes through, and nothing is left behind.
        """
        staging_root = Path(self._root) / manifest.model if self._is_local else self._cache / "staging"
        staging_root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".publishing-", dir=staging_root))
        try:
            write(staging)
            files = {str(p.relative_to(staging)): _sha256_file(p) for p in _files(staging)}
            complete = replace(
                manifest,
                files=files,
                created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                digest=_digest(manifest, files),
            )
            return self._place(complete, staging, held)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _place(self, manifest: Manifest, staging: Path, held: Callable[[], AbstractContextManager[None]]) -> Manifest:
        """Give the staged directory the next free version number; retries when another writer takes it first."""
        while True:
            version = max(self._numbers(manifest.model), default=0) + 1
            numbered = replace(manifest, version=str(version))
            (staging / MANIFEST).write_text(numbered.to_json())
            if not self._is_local:
                target = self._of(manifest.model, version)
                for name in numbered.files:
                    self._fs.put_file(str(staging / name), f"{target}/{name}")
                with held():  # without its manifest a version is none
                    self._fs.put_file(str(staging / MANIFEST), f"{target}/{MANIFEST}")
                return numbered
            for path in (*_files(staging), *_directories(staging)):
                _fsync(path)
            staging.chmod(0o755)
            try:
                with held():
                    staging.rename(self._of(manifest.model, version))
            except OSError:
                if Path(self._of(manifest.model, version)).exists():
                    continue
                raise
            _fsync(Path(self._root) / manifest.model)
            return numbered

    def _download(self, manifest: Manifest, directory: Path) -> None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            partial = Path(temporary) / "version"
            for name in (*manifest.files, MANIFEST):
                target = _inside(partial, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._fs.get_file(self._of(manifest.model, manifest.version, name), str(target))
                except FileNotFoundError as error:
                    raise CorruptVersion(f"{manifest.model} {manifest.version}: {name} is missing") from error
            if not directory.exists():
                partial.rename(directory)

    def _of(self, model: str, version: int | str, *names: str) -> str:
        return "/".join((self._root, model, str(version), *names))


def _verify(directory: Path, manifest: Manifest) -> None:
    where = f"{manifest.model} {manifest.version}"
    present = {str(p.relative_to(directory)) for p in _files(directory)} - {MANIFEST}
    for name in sorted(set(manifest.files) | present):
        if name not in manifest.files:
            raise CorruptVersion(f"{where}: {name} is not in the manifest")
        if name not in present:
            raise CorruptVersion(f"{where}: {name} is missing")
        if _sha256_file(_inside(directory, name)) != manifest.files[name]:
            raise CorruptVersion(f"{where}: {name} was altered (sha256 differs from the manifest)")
    if _digest(manifest, manifest.files) != manifest.digest:
        raise CorruptVersion(f"{where}: the manifest was altered (digest differs)")


def _digest(manifest: Manifest, files: Mapping[str, str]) -> str:
    covered = {
        "files": dict(files),
        "calibration": asdict(manifest.calibration) if manifest.calibration else None,
        "text_format": dict(manifest.text_format),
        "max_length": manifest.max_length,
    }
    if manifest.trunk is not None:
        covered["trunk"] = asdict(manifest.trunk)
    return _sha256(json.dumps(covered, sort_keys=True).encode())


def _inside(directory: Path, name: str) -> Path:
    """The path of a manifest's file; refuses names that leave the version directory."""
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise CorruptVersion(f"{name!r} leaves the version directory")
    return path


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


def _directories(directory: Path) -> list[Path]:
    return [directory, *(p for p in directory.rglob("*") if p.is_dir())]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
