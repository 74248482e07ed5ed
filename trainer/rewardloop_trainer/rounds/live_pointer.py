"""Reads which version of a model is live, and keeps a copy of the pointers in the model store.

The copy outlives Redis. Some servers have the store read-only, so the leading trainer writes it too.
"""

from __future__ import annotations

import threading

import redis
import structlog

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.formats.storing.active import Active, CorruptPointer, later_of
from rewardloop.formats.storing.pointer_file import PointerFileError
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES
from rewardloop_trainer.rounds.pauses import ServerAway

log = structlog.get_logger()

# How old the copy may be with which Redis is compared: it is read once a second for each model.
_COPY_AGE_S = 5.0


def active_pointer(client: redis.Redis, store: ModelStore, model: str) -> Active | None:
    """Return the later one of Redis's pointer and the store's copy; None if the model has none.

    A Redis that lost its data, or fell back to an earlier state, does not bring back a version that a person rejected.

    Raises:
        redis.RedisError: Redis does not answer.
        ServerAway: A pointer cannot be read, so that nothing is known of what is live.
    """
    raw = client.hget(keys.ACTIVE, model)
    try:
        found = None if raw is None else Active.from_json(raw)
        copy = store.pointers.read(model, _COPY_AGE_S)
    except (CorruptPointer, PointerFileError) as error:
        raise ServerAway(str(error)) from error
    return later_of(found, copy)


def live_version(client: redis.Redis, store: ModelStore, model: str) -> str | None:
    """Return the number of the active version, or of the newest one in the store if none was promoted yet.

    Returns None if the store is empty. Raises what `active_pointer` raises.
    """
    if (active := active_pointer(client, store, model)) is not None:
        return active.version
    versions = store.versions(model)
    return str(versions[-1]) if versions else None


def is_held(client: redis.Redis, store: ModelStore, model: str) -> bool:
    """Return whether a person's rollback holds the promotions of trainers. Raises what `active_pointer` raises."""
    active = active_pointer(client, store, model)
    return active is not None and active.is_held


def canary_version(client: redis.Redis, store: ModelStore, model: str) -> str | None:
    """Return the version that has a share of the traffic beside the active one, if any.

    Raises what `active_pointer` raises.
    """
    active = active_pointer(client, store, model)
    return None if active is None or active.canary is None else active.canary.version


def keep_pointers(client: redis.Redis, store: ModelStore, stop: threading.Event, every_s: float = 1.0) -> None:
    """Copy each pointer that is in Redis into the store until ``stop`` is set, unless the copy is a later one.

    A failure is logged when it begins, and tried again.
    """
    kept: dict[str, str] = {}
    said = ""
    while True:
        try:
            for name, value in client.hgetall(keys.ACTIVE).items():
                model, raw = _text(name), _text(value)
                active = Active.from_json(raw)
                if kept.get(model) != raw and active.epoch:
                    store.pointers.keep(model, active)
                    kept[model] = raw
            said = ""
        except (CorruptPointer, PointerFileError, *REDIS_FAILURES) as error:
            if type(error).__name__ != said:
                log.warning("the pointer is not copied into the store", error=str(error))
            said = type(error).__name__
        if stop.wait(every_s):
            return


def _text(found: bytes | str) -> str:
    """Return what redis-py gives as bytes or as a text, by the client's settings."""
    return found.decode() if isinstance(found, bytes) else found
