"""Brings a finished candidate into service: publishes it once, promotes it, and waits until it is live."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import structlog

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.store import CorruptVersion, DataRange, Manifest, ModelStore
from rewardloop_client import (
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overtaken,
    PointerMoved,
    RewardloopClient,
    RewardloopError,
)
from rewardloop_trainer.archive.fence import Fenced
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.rounds.pauses import ServerAway

log = structlog.get_logger()

ROUND_NOTE = "round"
POLICY_PARITY = "not compared, because a policy is served from the very weights that were trained"
_ARRIVAL_SAMPLE = 1_000
_LOOK_BACK = 100


class PromotionRefused(Exception):
    """Raised when the server will not serve a version, however often it is asked."""


def data_range(
    ledger: Ledger, after_stream_id: str, until_stream_id: str, seed: int, aspect: str = REWARD
) -> DataRange:
    """Describe what a version learned from, with a sample of the arrival times of its new rows.

    Args:
        ledger: The ledger that it learned from.
        after_stream_id: Rows after this stream id are new; "" if all are.
        until_stream_id: The last stream id that it learned from.
        seed: Draws the sample.
        aspect: The aspect of the signals that it learned from. The number of signals is that of all aspects.
    """
    first = ledger.segments[0].first if ledger.segments else until_stream_id
    arrivals = ledger.arrivals(after_stream_id or None, until_stream_id, aspect=aspect)
    if len(arrivals) > _ARRIVAL_SAMPLE:
        arrivals = random.Random(seed).sample(arrivals, _ARRIVAL_SAMPLE)
    signals = ledger.rows_through(until_stream_id)
    return DataRange(first, until_stream_id, signals, tuple(sorted(arrivals)))


def published(store: ModelStore, model: str, round_key: str) -> Manifest | None:
    """Return the manifest of the version that this round has published already, if any.

    Only the newest versions of the store are looked at.
    """
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
    """Publish a version, unless this round has published it already in a process that then died.

    Args:
        store: Where the version goes.
        manifest: The version's manifest, to which the note of the round is added.
        write: Writes the version's files into a directory.
        round_key: Identifies the round.
        held: The version becomes visible inside this block. If entering it raises, the store stays as it was.

    Returns:
        The manifest of the published version.
    """
    existing = published(store, manifest.model, round_key)
    if existing is not None:
        return existing
    return store.publish(replace(manifest, notes={**manifest.notes, ROUND_NOTE: round_key}), write, held)


def code_version() -> str:
    """Return the version of the installed distribution, for manifests."""
    try:
        return metadata.version("rewardloop")
    except metadata.PackageNotFoundError:
        return "unknown"


def promote(
    server: RewardloopClient,
    model: str,
    version: str,
    reason: str,
    timeout_s: float,
    leader_epoch: int = 0,
    parent: str | None = None,
) -> None:
    """Make the version live. Returns once the server reports that it serves the version.

    Args:
        server: The client of the service.
        model: The model's name.
        version: The version's number.
        reason: Why it is promoted, for the server's record.
        timeout_s: How long the server may take.
        leader_epoch: The epoch of the trainer that asks; 0 if none is to be checked.
        parent: The version that it was trained from and compared with, which must be the live one, unless the version
            itself is live already; None for any.

    Raises:
        Fenced: If a trainer of a later epoch has promoted a version.
        PromotionRefused: If the server will never serve this version, or if a person has changed the live version since
            the version was trained.
        ServerAway: If the same call may succeed later.
    """
    with _refusals_apart():
        try:
            server.promote(
                model, version, reason=reason, leader_epoch=leader_epoch, expected_version=parent, timeout_s=timeout_s
            )
        except Overtaken as error:
            raise Fenced(str(error)) from error
        except PointerMoved:
            if server.get_version(model).version != version:  # else this round has promoted it before it was killed
                raise
        server.wait_until_active(model, version, timeout_s=timeout_s)


def set_canary(
    server: RewardloopClient, model: str, version: str | None, share: float, reason: str, timeout_s: float
) -> None:
    """Give the version its share of the traffic, or end the canary if ``version`` is None.

    Raises `PromotionRefused` and `ServerAway` as `promote` does.
    """
    with _refusals_apart():
        server.set_canary(model, version, share=share, reason=reason, timeout_s=timeout_s)


@contextmanager
def _refusals_apart() -> Iterator[None]:
    """Turn the client's errors into `PromotionRefused` or `ServerAway`."""
    try:
        yield
    except (FailedPrecondition, NotFound, InvalidRequest) as error:
        raise PromotionRefused(str(error)) from error
    except RewardloopError as error:
        raise ServerAway(str(error)) from error
