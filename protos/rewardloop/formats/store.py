"""The model store: immutable directories of versions, ``<store>/<model>/<version>/``.

A version is written under a temporary name, hashed, fsynced and renamed, so that a reader sees a whole version or
none. Object stores cannot rename, so there a writer claims the number first (`storing.claim`) and uploads the manifest
last, and a directory without one is no version. Beside the versions of a model lie a copy of its pointer and what
evaluations found of them (`storing.evaluated`). A version holds weights as safetensors or ONNX, and text. It holds no
links, and nothing that runs when it is read.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from rewardloop.formats.file_modes import give_default_modes, private_cache
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
from rewardloop.formats.storing.claim import NumberClaim
from rewardloop.formats.storing.evaluated import EvaluatedVersions
from rewardloop.formats.storing.pointer_file import PointerFile
from rewardloop.formats.storing.report_shelf import ReportShelf
from rewardloop.formats.storing.version_files import (
    MANIFEST as MANIFEST,
)
from rewardloop.formats.storing.version_files import (
    Told,
    Watch,
    directories_of,
    files_of,
    fsync,
    hashes_of,
    inside,
    refuse_unsafe,
    verify,
)

MODELS = ("reward", "policy")
ADAPTER = "adapter.onnx_adapter"
MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
_UNFINISHED = (".preparing-", ".publishing-", ".pruning-")
PRUNED = ".pruned"  # the directory of a model's manifests whose versions were deleted
TORCH = "torch"  # the directory of the weights with which training continues
_MOST_DIGITS = 18


class ModelStore:
    """Reads and publishes versions.

    Attributes:
        url: Where it is.
        pointers: The copies of the models' pointers.
        reports: Reports about them, for operators.
        evaluated: The figures of the last evaluation of each version.

    Args:
        url: A local path or any fsspec URL such as ``s3://bucket/models``.
        cache_dir: Where remote versions are kept once they are fetched; by default below the user's home directory.
        signer: Signs the versions that are published.
        trusted: Public keys. Versions that none of them has signed are refused.
        watch: Called in short intervals while files are hashed, uploaded or fetched.
    """

    def __init__(
        self,
        url: str | Path,
        cache_dir: Path | None = None,
        *,
        signer: Signer | None = None,
        trusted: TrustedKeys | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.url = str(url)
        self._signer = signer
        self._trusted = trusted
        self._watch = watch
        self._fs, root = fsspec.core.url_to_fs(self.url)
        self._root = str(root).rstrip("/")
        self._is_local = "file" in _protocols(self._fs)
        self._cache_dir = cache_dir
        self.pointers = PointerFile(self._fs, self._root, self._is_local)
        self.reports = ReportShelf(self._fs, self._root)
        self.evaluated = EvaluatedVersions(self._fs, self._root)

    @cached_property
    def _cache(self) -> Path:
        """Where remote versions are kept. A local store needs no such place, which a machine may lack."""
        return self._cache_dir or private_cache() / "store" / _sha256(self.url.encode())[:16]

    def exists(self) -> bool:
        """Whether something is stored under the store's address. Raises OSError."""
        return bool(self._fs.exists(self._root))

    def versions(self, model: str) -> list[int]:
        """Return the numbers of the model's versions in ascending order."""
        return [v for v in self._numbers(model) if self._fs.exists(self._of(model, v, MANIFEST))]

    def models(self) -> list[str]:
        """Return the names of the models of which the store has versions."""
        self._fs.invalidate_cache()
        try:
            names = [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(self._root, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in names if not name.startswith(".") and self.versions(name))

    def _numbers(self, model: str) -> list[int]:
        """Return the numbers of all directories, also of those whose writer died before it wrote the manifest."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(f"{self._root}/{model}", detail=False)
        except FileNotFoundError:
            return []
        names = [str(e).rstrip("/").rsplit("/", 1)[-1] for e in entries]
        return sorted(int(n) for n in names if _is_number(n))

    def manifest(self, model: str, version: int | str) -> Manifest:
        """Read the manifest of a version.

        Raises:
            VersionNotFound: The store does not have the version.
            CorruptVersion: The manifest cannot be read, or (`UntrustedVersion`) no trusted key has signed it.
        """
        if not _is_number(str(version)):
            raise VersionNotFound(
                f"{str(version)[:_MOST_DIGITS]!r} is not a version of {model}: versions are integers of at most "
                f"{_MOST_DIGITS} digits"
            )
        return self._manifest_in(self._of(model, version), model, version)

    def remembered(self, model: str, version: int | str) -> Manifest:
        """Read the manifest of a version that the store has, or that was pruned. Exceptions as of `manifest`."""
        try:
            return self.manifest(model, version)
        except VersionNotFound:
            return self._manifest_in(self._of(model, PRUNED, str(version)), model, version)

    def pruned(self, model: str) -> list[int]:
        """Return the numbers of the versions that were deleted and left their manifests, in ascending order."""
        return self._numbers(f"{model}/{PRUNED}")

    def read_file(self, model: str, version: int | str, name: str) -> bytes | None:
        """Return the content of a small file of a version, unchecked; None if the version has no such file."""
        try:
            content: bytes = self._fs.cat_file(self._of(model, version, name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return content

    def prune(self, model: str, version: int | str) -> None:
        """Delete a version and keep its manifest, by which the line of later versions is followed.

        Readers see the whole version or none. Raises `StoreError` as `manifest` does, and OSError.
        """
        self.manifest(model, version)
        kept = self._of(model, PRUNED, str(version))
        self._fs.makedirs(kept, exist_ok=True)
        for name in (SIGNATURE, MANIFEST):
            if (content := self.read_file(model, version, name)) is not None:
                self._fs.pipe_file(f"{kept}/{name}", content)
        place = self._of(model, version)
        if self._is_local:
            going = Path(self._of(model, f"{_UNFINISHED[2]}{version}"))
            shutil.rmtree(going, ignore_errors=True)  # left by a process that was killed
            Path(place).rename(going)
            shutil.rmtree(going)
        else:
            self._fs.rm_file(f"{place}/{MANIFEST}")  # without it the directory is no version
            self._fs.rm(place, recursive=True)

    def sweep(self, model: str, older_than_s: float = 86_400.0) -> list[str]:
        """Delete what writers that were killed have left in a local store. Returns the names of the directories.

        Args:
            model: The model's name.
            older_than_s: What is younger, in seconds, may belong to a writer that still runs.
        """
        if not self._is_local:
            return []
        root, before = Path(self._root) / model, time.time() - older_than_s
        left = [path for prefix in _UNFINISHED for path in root.glob(f"{prefix}*") if path.stat().st_mtime < before]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        return sorted(path.name for path in left)

    def _manifest_in(self, place: str, model: str, version: int | str) -> Manifest:
        try:
            data: bytes = self._fs.cat_file(f"{place}/{MANIFEST}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VersionNotFound(f"the store has no version {version} of {model}") from error
        if self._trusted is not None:
            self._check_signature(place, model, version, data, self._trusted)
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
            verify(directory, manifest, self._watch)
            return directory
        directory = self._cache / model / f"{manifest.version}-{manifest.digest[:16]}"
        if not directory.exists():
            self._download(manifest, directory)
        verify(directory, manifest, self._watch)
        return directory

    @contextmanager
    def scratch(self, model: str) -> Iterator[Path]:
        """Give a directory to prepare a version in, on the disk from which `publish` takes it without a copy."""
        root = self._staging_root(model)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED[0], dir=root) as directory:
            yield Path(directory)

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
        staging = Path(tempfile.mkdtemp(prefix=_UNFINISHED[1], dir=self._staging_root(manifest.model)))
        try:
            write(staging)
            refuse_unsafe(staging, f"a new version of {manifest.model}")
            files = hashes_of(staging, [str(p.relative_to(staging)) for p in files_of(staging)], self._watch)
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
                if self._upload(self._of(manifest.model, version), staging, names, held):
                    return numbered
                continue
            give_default_modes(staging)
            for path in (*files_of(staging), *directories_of(staging)):
                fsync(path)
            try:
                with held():
                    staging.rename(self._of(manifest.model, version))
            except OSError:
                if Path(self._of(manifest.model, version)).exists():
                    continue
                raise
            fsync(Path(self._root) / manifest.model)
            return numbered

    def _upload(
        self, target: str, staging: Path, names: list[str], held: Callable[[], AbstractContextManager[None]]
    ) -> bool:
        """Upload the files, the manifest last. Returns False if another writer has the number."""
        claim = NumberClaim(self._fs, target)
        if not claim.take():
            return False
        told = Told("uploading", sum((staging / name).stat().st_size for name in names), self._watch)
        try:
            for name in names[:-1]:
                self._fs.put_file(str(staging / name), f"{target}/{name}", callback=told)
            with held():  # the manifest makes the version visible
                if claim.is_held():
                    self._fs.put_file(str(staging / MANIFEST), f"{target}/{MANIFEST}")
                    return True
        except BaseException:
            claim.abandon()
            raise
        return False

    def _download(self, manifest: Manifest, directory: Path) -> None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            partial = Path(temporary) / "version"
            sizes = [self._size(self._of(manifest.model, manifest.version, name)) for name in manifest.files]
            told = Told("fetching", sum(sizes), self._watch)
            for name in (*manifest.files, MANIFEST):
                target = inside(partial, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    path = self._of(manifest.model, manifest.version, name)
                    self._fs.get_file(path, str(target), callback=told)
                except FileNotFoundError as error:
                    raise CorruptVersion(f"{manifest.model} {manifest.version}: {name!r} is missing") from error
            if not directory.exists():
                partial.rename(directory)

    def _size(self, path: str) -> int:
        try:
            return int(self._fs.size(path) or 0)
        except FileNotFoundError:
            return 0

    def _staging_root(self, model: str) -> Path:
        root = Path(self._root) / model if self._is_local else self._cache / "staging"
        root.mkdir(parents=True, exist_ok=True)
        return root

    def _check_signature(
        self, place: str, model: str, version: int | str, manifest: bytes, trusted: TrustedKeys
    ) -> None:
        try:
            signature = self._fs.cat_file(f"{place}/{SIGNATURE}")
        except FileNotFoundError as error:
            raise UntrustedVersion(f"{model} {version} is not signed") from error
        if not trusted.have_signed(manifest, signature):
            raise UntrustedVersion(f"{model} {version} is not signed with a trusted key, or was altered since")

    def _of(self, model: str, version: int | str, *names: str) -> str:
        return "/".join((self._root, model, str(version), *names))


def _is_number(version: str) -> bool:
    return version.isascii() and version.isdecimal() and len(version) <= _MOST_DIGITS


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
