"""Reads which version of a model is live."""

from __future__ import annotations

import json

import redis

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore


def live_version(client: redis.Redis, store: ModelStore, model: str) -> str | None:
    """Return the number of the active version, or of the newest one in the store if none was promoted yet.

    Returns None if the store is empty. Raises redis.RedisError.
    """
    raw = client.hget(keys.ACTIVE, model)
    if raw is not None:
        return str(json.loads(raw)["version"])
    versions = store.versions(model)
    return str(versions[-1]) if versions else None


def is_held(client: redis.Redis, model: str) -> bool:
    """Return whether a person's rollback holds the promotions of trainers. Raises redis.RedisError."""
    raw = client.hget(keys.ACTIVE, model)
    return raw is not None and bool(json.loads(raw).get("held"))


def canary_version(client: redis.Redis, model: str) -> str | None:
    """Return the version that has a share of the traffic beside the active one, if any. Raises redis.RedisError."""
    raw = client.hget(keys.ACTIVE, model)
    canary = None if raw is None else json.loads(raw).get("canary")
    return None if canary is None else str(canary["version"])
