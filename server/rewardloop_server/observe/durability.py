"""Finds out how durable the connected Redis keeps what it is told, and says so if that is not durable at all.

Redis's INFO names whether it has an append-only file. How often that file is synced only CONFIG tells, which a user of
an ACL or of a managed Redis may not ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from rewardloop.formats import keys
from rewardloop.formats.redis_url import Kind
from rewardloop_server.calls.errors import RewardloopError
from rewardloop_server.calls.redis_link import redis_errors
from rewardloop_server.calls.replication import Replication
from rewardloop_server.calls.vocabulary import DURABILITIES, Durability
from rewardloop_server.observe.metrics import NOT_KNOWN, ServerMetrics

log = structlog.get_logger()

# By these a Redis that is killed has lost what it acknowledged since its last snapshot, or everything.
LOSSY: tuple[Durability, ...] = ("snapshots", "memory", "not_appended")


@dataclass(frozen=True, slots=True)
class RedisState:
    """How Redis keeps what it is told.

    Attributes:
        durability: What becomes of it if Redis is killed; of a cluster's parts the least durable one.
        replicas: How many replicas follow, of a cluster's parts the fewest; None if that cannot be found out.
    """

    durability: Durability
    replicas: int | None


async def poll_durability(
    metrics: ServerMetrics, redis: Redis, kind: Kind, replication: Replication, every_s: float = 30.0
) -> None:
    """Set the gauges of Redis's durability until cancelled, and log it whenever it changes."""
    told: tuple[Durability, bool] | None = None
    pause = min(1.0, every_s)
    while True:
        try:
            state = await redis_state(redis, kind)
            with redis_errors():
                required = await replication.required(keys.FEEDBACK_BARRIER)
        except RewardloopError:
            metrics.durable("unknown")
            metrics.redis_replicas.set(NOT_KNOWN)
        else:
            pause = every_s
            metrics.durable(state.durability)
            metrics.redis_replicas.set(NOT_KNOWN if state.replicas is None else state.replicas)
            metrics.redis_replicas_required.set(required)
            has_idle_replicas = kind == "server" and bool(state.replicas) and not required
            if told != (state.durability, has_idle_replicas):
                told = (state.durability, has_idle_replicas)
                _tell(state, required, has_idle_replicas)
        await asyncio.sleep(pause)


async def redis_state(redis: Redis, kind: Kind) -> RedisState:
    """Ask Redis, or each master of a cluster. Raises RedisUnavailable."""
    client: Any = redis  # its types are unions over every protocol version and decoding
    with redis_errors():
        if kind != "cluster":
            return await _state_of(client, {})
        await client.initialize()
        found = [await _state_of(client, {"target_nodes": node}) for node in client.get_primaries()]
    if not found:
        return RedisState("unknown", None)
    replicas = [state.replicas for state in found if state.replicas is not None]
    worst = max(found, key=lambda state: DURABILITIES.index(state.durability))
    return RedisState(worst.durability, min(replicas) if len(replicas) == len(found) else None)


async def _state_of(client: Any, where: Mapping[str, Any]) -> RedisState:
    try:
        info: Mapping[str, Any] = await client.execute_command("INFO", **where)
    except ResponseError:
        info = {}
    replicas = info.get("connected_slaves")
    return RedisState(await _durability(client, info, where), None if replicas is None else int(replicas))


async def _durability(client: Any, info: Mapping[str, Any], where: Mapping[str, Any]) -> Durability:
    if "aof_enabled" not in info:
        return "unknown"
    if int(info["aof_enabled"]):
        match await _configured(client, "appendfsync", where):
            case ("always" | "everysec" | "no") as synced:
                return synced
            case _:
                return "appended"
    saves = await _configured(client, "save", where)
    return "not_appended" if saves is None else "snapshots" if saves else "memory"


async def _configured(client: Any, name: str, where: Mapping[str, Any]) -> str | None:
    """Return a setting of Redis, or None if this user may not ask for it."""
    try:
        found: Mapping[Any, Any] = await client.execute_command("CONFIG GET", name, **where)
    except ResponseError:
        return None
    values = [value.decode() if isinstance(value, bytes) else str(value) for value in found.values()]
    return values[0] if values else None


def _tell(state: RedisState, required: int, has_idle_replicas: bool) -> None:
    fields = {"durability": state.durability, "replicas": state.replicas, "replicas_required": required}
    if state.durability in LOSSY:
        log.warning(
            "Redis has no append-only file: if it is killed, signals that were acknowledged are lost",
            remedy="appendonly yes, appendfsync always",
            **fields,
        )
    elif state.durability in ("everysec", "no"):
        log.warning(
            "Redis acknowledges before it syncs: the last signals are lost if its machine fails",
            remedy="appendfsync always",
            **fields,
        )
    else:
        log.info("how Redis keeps what it is told", **fields)
    if has_idle_replicas:
        log.warning(
            "Redis has replicas, and nobody waits for them: a failover may lose signals that were acknowledged",
            remedy="--redis-replicas 1",
            **fields,
        )
