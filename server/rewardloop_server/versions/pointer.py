"""The pointer of each model, in Redis, which names the versions that serve. Every replica follows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop_server.calls.errors import InvalidRequest, Overtaken, PointerMoved, PromotionHeld, Violation
from rewardloop_server.calls.redis_link import redis_errors, script_text
from rewardloop_server.calls.vocabulary import VERSION_ROLES, VersionRole

_MAX_PREVIOUS = 20
_MAX_REASON_CHARS = 1000

_MOVE = script_text(__package__, "move.lua")
_ASSIGN = script_text(__package__, "assign.lua")


@dataclass(frozen=True, slots=True)
class Share:
    """A version beside the active one, and its share of the requests: above 0, at most 1."""

    version: str
    share: float


@dataclass(frozen=True, slots=True)
class Active:
    """A model's pointer.

    Attributes:
        version: The active version.
        previous: The versions that rollbacks go back to, newest first.
        canary: The canary and its share, if there is one.
        shadow: The shadow and its share, if there is one.
        is_held: A rollback holds the promotions of leaders.
    """

    version: str
    previous: tuple[str, ...] = ()
    canary: Share | None = None
    shadow: Share | None = None
    is_held: bool = False

    @property
    def rollback_target(self) -> str | None:
        """The version that was active before this one."""
        return self.previous[0] if self.previous else None

    def beside(self, role: VersionRole) -> Share | None:
        """Return the holder of the role."""
        return self.canary if role == "canary" else self.shadow


class ActivePointer:
    """Reads and moves the pointers. Every method raises RedisUnavailable if Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._move = redis.register_script(_MOVE)
        self._assign = redis.register_script(_ASSIGN)

    async def read(self, model: str) -> Active | None:
        """Return the model's pointer, or None if no version was ever active."""
        with redis_errors():
            raw = await self._redis.hget(keys.ACTIVE, model)
            if raw is None:
                return None
            value = json.loads(raw)
            shares = {role: _share(value.get(role)) for role in VERSION_ROLES}
            return Active(
                value["version"], tuple(value["previous"]), shares["canary"], shares["shadow"], bool(value.get("held"))
            )

    async def move(
        self, model: str, version: str, reason: str, leader_epoch: int = 0, expected: str | None = None
    ) -> str | None:
        """Make a version active, end the canary and the shadow, and return the version that was active before.

        Args:
            model: The model's name.
            version: The version to make active.
            reason: Why, for the record.
            leader_epoch: The epoch of a trainer that asks as the leader; 0 if nobody asks as a leader.
            expected: The version that must be active, if any is; None for any.

        Raises:
            InvalidRequest: No trainer has led with this epoch.
            Overtaken: A later leader has promoted a version of the model.
            PointerMoved: Another version is active than expected.
            PromotionHeld: A leader asks, and a rollback holds its promotions.
        """
        if leader_epoch:
            with redis_errors():
                newest = int(await self._redis.get(keys.TRAINER_EPOCH) or 0)
            if leader_epoch > newest:
                raise InvalidRequest([Violation("leader_epoch", "no trainer has led with it")])
        before, outcome = await self._run(
            model, version, reason, must_be_active="", leader_epoch=leader_epoch, expected=expected or ""
        )
        match outcome:
            case -1:
                raise Overtaken(f"a trainer that led later than {leader_epoch} has promoted a version of {model}")
            case -2:
                raise PointerMoved(f"{model} {before} is active, not {expected}")
            case -3:
                raise PromotionHeld(
                    f"{model} was rolled back to {before}: a person must promote a version, which may be this one, "
                    "before trainers may again"
                )
        return before

    async def move_back(self, model: str, version: str, target: str, reason: str) -> bool:
        """Go back from ``version`` to its rollback target, and end the canary and the shadow.

        Returns False, and changes nothing, if the pointer has moved meanwhile.
        """
        _, outcome = await self._run(model, target, reason, must_be_active=version)
        return bool(outcome)

    async def assign(self, model: str, role: VersionRole, holder: Share, reason: str) -> bool:
        """Give the role to a version. Returns False if that version is the active one, or none is active."""
        return await self._set_role(model, role, holder, reason)

    async def end(self, model: str, role: VersionRole, reason: str) -> None:
        """End the role, whichever version has it."""
        await self._set_role(model, role, None, reason)

    async def initialise(self, model: str, version: str) -> None:
        """Make a version active unless the model has an active version."""
        value = {"version": version, "previous": [], "changed_at": _now(), "reason": "first version"}
        with redis_errors():
            await self._redis.hsetnx(keys.ACTIVE, model, json.dumps(value))

    async def restore(self, model: str, active: Active) -> bool:
        """Put back a pointer that Redis lost. Returns False if Redis has one."""
        value: dict[str, Any] = {"version": active.version, "previous": list(active.previous), "changed_at": _now()}
        value["reason"] = "put back after Redis lost it"
        if active.is_held:
            value["held"] = True
        for role in VERSION_ROLES:
            if (holder := active.beside(role)) is not None:
                value[role] = {"version": holder.version, "share": holder.share}
        with redis_errors():
            return bool(await self._redis.hsetnx(keys.ACTIVE, model, json.dumps(value)))

    async def _run(
        self, model: str, version: str, reason: str, must_be_active: str, leader_epoch: int = 0, expected: str = ""
    ) -> tuple[str | None, int]:
        reason = reason[:_MAX_REASON_CHARS]
        with redis_errors():
            before, outcome = await self._move(
                keys=[keys.ACTIVE, keys.PROMOTED_BY],
                args=[model, version, reason, _now(), _MAX_PREVIOUS, must_be_active, leader_epoch, expected],
            )
            return (None if before is None else before.decode()), int(outcome)

    async def _set_role(self, model: str, role: VersionRole, holder: Share | None, reason: str) -> bool:
        held = "" if holder is None else json.dumps({"version": holder.version, "share": holder.share})
        version = "" if holder is None else holder.version
        with redis_errors():
            is_set = await self._assign(
                keys=[keys.ACTIVE], args=[model, role, held, version, reason[:_MAX_REASON_CHARS], _now()]
            )
        return bool(is_set)


def _share(value: Mapping[str, Any] | None) -> Share | None:
    return None if value is None else Share(value["version"], value["share"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
