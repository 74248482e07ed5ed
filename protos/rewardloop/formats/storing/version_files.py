"""The files of one version's directory: what they may be, their hashes, and how they reach the disk."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import fsspec

from rewardloop.formats.manifest import Manifest, digest_of
from rewardloop.formats.signatures import SIGNATURE
from rewardloop.formats.store_errors import CorruptVersion, UnsafeVersion

Watch: TypeAlias = Callable[[str, int, int], None]  # what is done, bytes that are done, bytes in all

MANIFEST = "manifest.json"
# Formats that hold code or may hold pickles. Nothing here reads them, but a version with such a file is suspicious.
_UNSAFE_SUFFIX = re.compile(
    r"\.(bin|ckpt|dill|dll|dylib|h5|joblib|keras|mar|npy|npz|pickle|pkl|pt|pth|py|pyc|so)", re.IGNORECASE
)
_CHUNK = 4 * 2**20


def verify(directory: Path, manifest: Manifest, watch: Watch | None) -> None:
    where = f"{manifest.model} {manifest.version}"
    present = {str(p.relative_to(directory)) for p in files_of(directory)} - {MANIFEST, SIGNATURE}
    for name in sorted(set(manifest.files) | present):
        if name not in manifest.files:
            raise CorruptVersion(f"{where}: {name} is not in the manifest")
        if name not in present:
            raise CorruptVersion(f"{where}: {name!r} is missing")
    refuse_unsafe(directory, where)
    for name in manifest.files:
        inside(directory, name)
    for name, found in hashes_of(directory, list(manifest.files), watch).items():
        if found != manifest.files[name]:
            raise CorruptVersion(f"{where}: {name} was altered (sha256 differs from the manifest)")
    if digest_of(manifest, manifest.files) != manifest.digest:
        raise CorruptVersion(f"{where}: the manifest was altered (digest differs)")


def refuse_unsafe(directory: Path, where: str) -> None:
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_symlink():
            raise UnsafeVersion(f"{where}: {name} is a link")
        if _UNSAFE_SUFFIX.fullmatch(path.suffix):
            raise UnsafeVersion(f"{where}: {name} may hold a pickle or code; weights are safetensors or ONNX")


def inside(directory: Path, name: str) -> Path:
    """Return the path of a file in the manifest. Raises CorruptVersion for a name that leaves the directory."""
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise CorruptVersion(f"{name!r} leaves the version directory")
    return path


def files_of(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


def directories_of(directory: Path) -> list[Path]:
    return [directory, *(p for p in directory.rglob("*") if p.is_dir())]


class Told(fsspec.callbacks.Callback):  # type: ignore[misc]  # fsspec has no types
    """Tells a watcher how far the files of one transfer are, all together."""

    def __init__(self, what: str, total: int, watch: Watch | None) -> None:
        super().__init__(size=total)
        self._what, self._total, self._done, self._watch = what, total, 0, watch

    def set_size(self, size: int) -> None:
        """Ignored: fsspec calls it with the size of a single file."""

    def relative_update(self, inc: int = 1) -> None:
        self._done += inc
        if self._watch is not None:
            self._watch(self._what, self._done, self._total)


def hashes_of(directory: Path, names: list[str], watch: Watch | None) -> dict[str, str]:
    """Return the sha256 of each of the files."""
    told = Told("hashing", sum((directory / name).stat().st_size for name in names), watch)
    found = {}
    for name in names:
        digest = hashlib.sha256()
        with (directory / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                told.relative_update(len(chunk))
        found[name] = digest.hexdigest()
    return found


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
