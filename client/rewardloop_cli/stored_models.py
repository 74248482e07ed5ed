"""Reads versions from a model store itself, where no server is needed."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rewardloop.formats.store_errors import StoreError
from rewardloop_cli.failures import UsageError
from rewardloop_client import Evaluation, VersionInfo

if TYPE_CHECKING:
    from rewardloop.formats.store import ModelStore


def open_store(url: str) -> ModelStore:
    """Open a store that exists. Raises UsageError."""
    try:
        from rewardloop.formats.store import ModelStore
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise UsageError(
            f"--store needs more packages: pip install 'rewardloop[server]' ({missing} is missing)"
        ) from error
    try:
        store = ModelStore(url)
    except (ImportError, ValueError) as error:  # fsspec knows no such protocol, or lacks its package
        raise UsageError(f"{url}: {error}") from error
    try:
        is_there = store.exists()
    except OSError as error:
        raise UsageError(f"{url}: {error}") from error
    if not is_there:
        raise UsageError(f"{url}: there is no such model store")
    return store


def versions(store: ModelStore, model: str) -> list[VersionInfo]:
    """Return the model's versions, newest first. A version whose manifest cannot be read has state "damaged"."""
    found = []
    for number in reversed(_numbers(store, model)):
        try:
            found.append(_info(store, model, str(number)))
        except (StoreError, OSError):  # OSError: it may not be read, or is no file
            found.append(VersionInfo(model, str(number), "", "damaged", "", None, {}, ""))
    return found


def one_version(store: ModelStore, model: str, number: str) -> VersionInfo:
    """Return one version: the newest if ``number`` is empty. Raises UsageError."""
    if not number:
        stored = _numbers(store, model)
        if not stored:
            raise UsageError(f"{store.url} has no versions of {model}")
        number = str(stored[-1])
    try:
        return _info(store, model, number)
    except (StoreError, OSError) as error:
        raise UsageError(f"{store.url}: {error}") from error


def _numbers(store: ModelStore, model: str) -> list[int]:
    try:
        return store.versions(model)
    except OSError as error:
        raise UsageError(f"{store.url}: {error}") from error


def _info(store: ModelStore, model: str, number: str) -> VersionInfo:
    manifest = store.manifest(model, number)
    found = _evaluated(store, model, manifest.version, manifest.digest)
    return VersionInfo(
        model,
        manifest.version,
        manifest.digest,
        "stored",
        manifest.parent or "",
        _moment(manifest.created_at),
        dict(manifest.metrics),
        manifest.to_json(),
        found,
    )


def _evaluated(store: ModelStore, model: str, version: str, digest: str) -> Evaluation | None:
    """Return what an evaluation found. If it cannot be read, that is said, and the version is shown without it."""
    from rewardloop.formats.storing.evaluated import EvaluatedError

    try:
        found = store.evaluated.read(model, version, digest)
    except EvaluatedError as error:
        print(f"rewardloop: {error}", file=sys.stderr)
        return None
    if found is None:
        return None
    return Evaluation(datetime.fromtimestamp(found.time, UTC), found.against, found.figures, found.report_id)


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
