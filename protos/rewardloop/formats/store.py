"""The model store: immutable directories of versions, ``<store>/<model>/<version>/``.

A version is written under a temporary name, hashed, fsynced and renamed, so that a reader sees a whole version or
none. Object stores cannot rename, so there the manifest is uploaded last, and a directory without one is no version. A
version holds weights as safetensors or ONNX, and text. It holds no links, and nothing that runs when it is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from rewardloop.formats.file_modes import give_default_modes
from rewardloop.formats.manifest import Calibration as Calibration
from rewardloop.formats.manifest import DataRange as DataRange
from rewardloop.formats.manifest import Manifest as Manifest
from rewardloop.formats.manifest import Trunk as Trunk
from rewardloop.formats.manifest import digest_of
from rewardloop.formats.signatures import SIGNATURE, Signer, TrustedKeys
from rewardloop.formats.store_errors import CorruptVersion as CorruptVersion
from rewardloop.formats.store_errors import StoreError as StoreError
from rewardloop.formats.store_errors import UnsafeVersion as UnsafeVersion
from rewardloop.formats.store_errors import UntrustedVersion as UntrustedVersion
from rewardloop.formats.store_errors import VersionNotFound as VersionNotFound

MODELS = ("reward", "policy")
MANIFEST = "manifest.json"
ADAPTER = "adapter.onnx_adapter"
MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
TORCH = "torch"  # the directory of the weights with which training continues
# Formats that hold code or may hold pickles. Nothing here reads them, but a version with such a file is suspicious.
_UNSAFE_SUFFIX = re.compile(
    r"\.(bin|ckpt|dill|dll|dylib|h5|joblib|keras|mar|npy|npz|pickle|pkl|pt|pth|py|pyc|so)", re.IGNORECASE
)


class ModelStore:
    """Reads and publishes versions.

    Args:
        url: A local path or any fsspec URL such as ``s3://bucket/models``.
        cache_dir: Where remote versions are kept once they are fetched; by default under the temporary directory.
        signer: Signs the versions that are published.
        trusted: Public keys. Versions that none of them has signed are refused.
    """

    def __init__(
        self,
        url: str | Path,
        cache_dir: Path | None = None,
        *,
        signer: Signer | None = None,
        trusted: TrustedKeys | None = None,
    ) -> None:
        self.url = str(url)
        self._signer = signer
        self._trusted = trusted
        self._fs, root = fsspec.core.url_to_fs(self.url)
        self._root = str(root).rstrip("/")
        self._is_local = "file" in _protocols(self._fs)
        self._cache = cache_dir or Path(tempfile.gettempdir()) / "rewardloop-store" / _sha256(self.url.encode())[:16]

    def versions(self, model: str) -> list[int]:
        """Return the numbers of the model's versions in ascending order."""
        return [v for v in self._numbers(model) if self._fs.exists(self._of(model, v, MANIFEST))]

    def _numbers(self, model: str) -> list[int]:
        """Return the numbers of all directories, also of those whose writer died before it wrote the manifest."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(f"{self._root}/{model}", detail=False)
        except FileNotFoundError:
            return []
        names = [str(e).rstrip("/").rsplit("/", 1)[-1] for e in entries]
        return sorted(int(n) for n in names if n.isdecimal())

    def manifest(self, model: str, version: int | str) -> Manifest:
        """Read the manifest of a version.

        Raises:
            VersionNotFound: The store does not have the version.
            CorruptVersion: The manifest cannot be read, or (`UntrustedVersion`) no trusted key has signed it.
        """
        if not str(version).isdecimal():
            raise VersionNotFound(f"{version!r} is not a version of {model}: versions are integers")
        try:
            data: bytes = self._fs.cat_file(self._of(model, version, MANIFEST))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VersionNotFound(f"the store has no version {version} of {model}") from error
        if self._trusted is not None:
            self._check_signature(model, version, data, self._trusted)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise CorruptVersion(f"manifest of {model} {version}: not UTF-8") from error
        manifest = Manifest.from_json(text)
        if (manifest.model, manifest.version) != (model, str(version)):
            raise CorruptVersion(f"{model} {version} holds the manifest of {manifest.model!r} {manifest.version!r}")
        return manifest

    def path(self, model: str, version: int | str) -> str:
        """Return the path of the version inside the store."""
        return self._of(model, version)

    def fetch(self, model: str, version: int | str) -> Path:
        """Return a local directory with the version, after checking the sha256 of every file.

        Raises:
            VersionNotFound: The store does not have the version.
            CorruptVersion: A file is missing or altered. `UnsafeVersion` and `UntrustedVersion` are subclasses.
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
        """Store a new version.

        Args:
            manifest: The fields that are not derived from the files.
            write: Called with an empty directory, which it fills with the files of the version.
            held: A context in which the version becomes visible, such as one that holds a lock.

        Returns:
            The manifest with version, digest, files and created_at filled in.

        Raises:
            UnsafeVersion: ``write`` has written a file that no version may hold. An exception of ``write`` or ``held``
                is passed on. In both cases nothing is left in the store.
        """
        staging_root = Path(self._root) / manifest.model if self._is_local else self._cache / "staging"
        staging_root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".publishing-", dir=staging_root))
        try:
            write(staging)
            _refuse_unsafe(staging, f"a new version of {manifest.model}")
            files = {str(p.relative_to(staging)): _sha256_file(p) for p in _files(staging)}
            complete = replace(
                manifest,
                files=files,
                created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                digest=digest_of(manifest, files),
            )
            return self._place(complete, staging, held)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _place(self, manifest: Manifest, staging: Path, held: Callable[[], AbstractContextManager[None]]) -> Manifest:
        """Give the staged directory the next free version number, and try again if another writer takes it first."""
        while True:
            version = max(self._numbers(manifest.model), default=0) + 1
            numbered = replace(manifest, version=str(version))
            (staging / MANIFEST).write_text(numbered.to_json())
            names = [*numbered.files, MANIFEST]
            if self._signer is not None:
                (staging / SIGNATURE).write_bytes(self._signer.sign((staging / MANIFEST).read_bytes()))
                names.insert(-1, SIGNATURE)
            if not self._is_local:
                target = self._of(manifest.model, version)
                for name in names[:-1]:
                    self._fs.put_file(str(staging / name), f"{target}/{name}")
                with held():  # the manifest makes the version visible
                    self._fs.put_file(str(staging / MANIFEST), f"{target}/{MANIFEST}")
                return numbered
            give_default_modes(staging)
            for path in (*_files(staging), *_directories(staging)):
                _fsync(path)
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
                    raise CorruptVersion(f"{manifest.model} {manifest.version}: {name!r} is missing") from error
            if not directory.exists():
                partial.rename(directory)

    def _check_signature(self, model: str, version: int | str, manifest: bytes, trusted: TrustedKeys) -> None:
        try:
            signature = self._fs.cat_file(self._of(model, version, SIGNATURE))
        except FileNotFoundError as error:
            raise UntrustedVersion(f"{model} {version} is not signed") from error
        if not trusted.have_signed(manifest, signature):
            raise UntrustedVersion(f"{model} {version} is not signed with a trusted key, or was altered since")

    def _of(self, model: str, version: int | str, *names: str) -> str:
        return "/".join((self._root, model, str(version), *names))


def _verify(directory: Path, manifest: Manifest) -> None:
    where = f"{manifest.model} {manifest.version}"
    present = {str(p.relative_to(directory)) for p in _files(directory)} - {MANIFEST, SIGNATURE}
    for name in sorted(set(manifest.files) | present):
        if name not in manifest.files:
            raise CorruptVersion(f"{where}: {name} is not in the manifest")
        if name not in present:
            raise CorruptVersion(f"{where}: {name!r} is missing")
    _refuse_unsafe(directory, where)
    for name in manifest.files:
        if _sha256_file(_inside(directory, name)) != manifest.files[name]:
            raise CorruptVersion(f"{where}: {name} was altered (sha256 differs from the manifest)")
    if digest_of(manifest, manifest.files) != manifest.digest:
        raise CorruptVersion(f"{where}: the manifest was altered (digest differs)")


def _refuse_unsafe(directory: Path, where: str) -> None:
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_symlink():
            raise UnsafeVersion(f"{where}: {name} is a link")
        if _UNSAFE_SUFFIX.fullmatch(path.suffix):
            raise UnsafeVersion(f"{where}: {name} may hold a pickle or code; weights are safetensors or ONNX")


def _inside(directory: Path, name: str) -> Path:
    """Return the path of a file in the manifest. Raises CorruptVersion for a name that leaves the directory."""
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
