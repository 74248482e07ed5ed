"""From a finished candidate to the version that serves: publish once, promote, wait until it is live."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import redis
import structlog

from rewardloop.formats import keys
from rewardloop.formats.store import CorruptVersion, DataRange, Manifest, ModelStore
from rewardloop_client import (
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overtaken,
    RewardloopClient,
    RewardloopError,
)
from rewardloop_trainer.archive.fence import Fenced
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.rounds.pauses import ServerAway

log = structlog.get_logger()

ROUND_NOTE = "round"
_ARRIVAL_SAMPLE = 1_000
_LOOK_BACK = 100


class PromotionRefused(Exception):
    """The server will not serve this version: asking again changes nothing."""


def live_version(client: redis.Redis, store: ModelStore, model: str) -> str | None:
    """The active version's number; before any was promoted, the newest in the store; None for an empty store.

    Raises redis.RedisError.
    """
    raw = client.hget(keys.ACTIVE, model)
    if raw is not None:
        return str(json.loads(raw)["version"])
    versions = store.versions(model)
    return str(versions[-1]) if versions else None


def canary_version(client: redis.Redis, model: str) -> str | None:
    """The version that has a share of the traffic beside the active one; None for none. Raises redis.RedisError."""
    raw = client.hget(keys.ACTIVE, model)
    canary = None if raw is None else json.loads(raw).get("canary")
    return None if canary is None else str(canary["version"])


def data_range(ledger: Ledger, after_stream_id: str, until_stream_id: str, seed: int) -> DataRange:
    """What a version learned from, with a sample of the arrival times of the rows after ``after_stream_id``."""
    first = ledger.segments[0].first if ledger.segments else until_stream_id
    arrivals = ledger.arrivals(after_stream_id or None, until_stream_id)
    if len(arrivals) > _ARRIVAL_SAMPLE:
        arrivals = random.Random(seed).sample(arrivals, _ARRIVAL_SAMPLE)
    signals = ledger.row_count - ledger.rows_after(until_stream_id)
    return DataRange(first, until_stream_id, signals, tuple(sorted(arrivals)))


def published(store: ModelStore, model: str, round_key: str) -> Manifest | None:
    """The version that this round has already published, if any."""
    for number in reversed(store.versions(model)[-_LOOK_BACK:]):
        try:
            manifest = store.manifest(model, number)
        except CorruptVersion as error:
            log.warning("a version in the store cannot be read", model=model, version=number, error=str(error))
            continue
        if manifest.notes.get(ROUND_NOTE) == round_key:
            return manifest
    return None


def publish_once(
    store: ModelStore,
    manifest: Manifest,
    write: Callable[[Path], None],
    round_key: str,
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Manifest:
    """Publish, unless a process that died after publishing did so in this round already.

    The version gets its place in the store within ``held()``, whose exception leaves the store as it was.
    """
    existing = published(store, manifest.model, round_key)
    if existing is not None:
        return existing
    return store.publish(replace(manifest, notes={**manifest.notes, ROUND_NOTE: round_key}), write, held)


def code_version() -> str:
    """Of the installed distribution, for manifests."""
    try:
        return metadata.version("rewardloop")
    except metadata.PackageNotFoundError:
        return "unknown"


def promote(
    server: RewardloopClient, model: str, version: str, reason: str, timeout_s: float, leader_epoch: int = 0
) -> None:
    """Make the version live; returns once the server reports that it serves it.

    Raises Fenced when a trainer that led later than ``leader_epoch`` has promoted a version (0: not asked),
    `PromotionRefused` when the server never will, `ServerAway` for everything that may pass.
    """
    with _refusals_apart():
        try:
            server.promote(model, version, reason=reason, leader_epoch=leader_epoch, timeout_s=timeout_s)
        except Overtaken as error:
            raise Fenced(str(error)) from error
        server.wait_until_active(model, version, timeout_s=timeout_s)


def set_canary(
    server: RewardloopClient, model: str, version: str | None, share: float, reason: str, timeout_s: float
) -> None:
    """Give the version its share of the traffic; None ends the canary. Raises as `promote`."""
    with _refusals_apart():
        server.set_canary(model, version, share=share, reason=reason, timeout_s=timeout_s)


@contextmanager
def _refusals_apart() -> Iterator[None]:
    try:
        yield
    except (FailedPrecondition, NotFound, InvalidRequest) as error:
        raise PromotionRefused(str(error)) from error
    except RewardloopError as error:
        raise ServerAway(str(error)) from error
