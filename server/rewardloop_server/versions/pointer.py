"""The pointer of each model, in Redis, which names the versions that serve. Every replica follows it.

The model store holds a copy. If Redis, the copy, and what this process has seen differ, the latest of them is followed
and the others are repaired: a Redis that lost its data or fell back to an earlier state undoes nobody's decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from rewardloop.formats import keys
from rewardloop.formats.storing.active import Active, Share, first_pointer, later_of
from rewardloop.formats.storing.pointer_file import PointerFile
from rewardloop.formats.vocabulary import VersionRole
from rewardloop_server.calls.errors import (
    InvalidRequest,
    Overtaken,
    PointerMoved,
    PromotionHeld,
    RedisUnavailable,
    Violation,
)
from rewardloop_server.calls.redis_link import redis_errors, script_text
from rewardloop_server.calls.replication import Replication
from rewardloop_server.calls.vocabulary import PointerSource
from rewardloop_server.versions.pointer_copy import EVERY_S, PointerCopies

log = structlog.get_logger()

_SWAP = script_text(__package__, "swap.lua")
_SWAP_SHA = hashlib.sha1(_SWAP.encode(), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class _Seen:
    """What this process knows of one model's pointer.

    Attributes:
        latest: The latest pointer that was seen anywhere; None before the first.
        raw: What Redis held when ``latest`` was found or put there; None if nothing.
    """

    latest: Active | None = None
    raw: bytes | None = None


class ActivePointer:
    """Reads and moves the pointers.

    Every method but `stored` raises RedisUnavailable if Redis is away, and StoreFull if it takes no writes. A method
    that moves a pointer raises RedisUnavailable too if too few replicas have the move in time: then it may be lost, and
    asking again is the way to be sure.

    Args:
        redis: Where the pointers are.
        copies: The store's copies. None if there are none.
        replication: How many replicas must have a move; by default none.
        on_source: Called with the model and where its pointer was read, each time that it is.
    """

    def __init__(
        self,
        redis: Redis,
        copies: PointerFile | None = None,
        replication: Replication | None = None,
        on_source: Callable[[str, PointerSource], None] = lambda model, source: None,
    ) -> None:
        self._redis = redis
        self._copies = PointerCopies(copies)
        self._replication = replication or Replication(redis)
        self._on_source = on_source
        self._seen: dict[str, _Seen] = {}
        self._sources: dict[str, PointerSource] = {}

    async def read(self, model: str) -> Active | None:
        """Return the latest pointer of the model, and repair Redis and the copy if they hold an earlier one.

        Returns None if no version was ever active.
        """
        active = await self._read(model, EVERY_S)
        if active is not None:
            self._followed(model, active, "redis")
        return active

    async def stored(self, model: str) -> Active | None:
        """Return the latest pointer that is known without Redis, or None."""
        copy = await self._copies.read(model, 0.0)
        if (active := later_of(self._of(model).latest, copy)) is not None:
            self._followed(model, active, "store")
        return active

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
            PromotionHeld: A leader asks, and a rollback holds its promotions or has rejected the version.
        """
        if leader_epoch:
            with redis_errors():
                newest = int(await self._redis.get(keys.TRAINER_EPOCH) or 0)
            if leader_epoch > newest == 0:
                raise RedisUnavailable("Redis has lost the epoch of the leading trainer, which puts it back")
            if leader_epoch > newest:
                raise InvalidRequest([Violation("leader_epoch", "no trainer has led with it")])

        def promoted(old: Active | None) -> Active:
            if old is None:
                return first_pointer(version, reason, leader_epoch)
            _check_promotion(model, old, version, leader_epoch, expected)
            return old.promoted(version, reason, leader_epoch)

        old, _ = await self._change(model, promoted)
        return None if old is None else old.version

    async def move_back(self, model: str, version: str, target: str, reason: str) -> bool:
        """Go back from ``version`` to its rollback target, and end the canary and the shadow.

        Returns False, and changes nothing, if the pointer has moved meanwhile.
        """

        def rolled_back(old: Active | None) -> Active | None:
            is_as_seen = old is not None and (old.version, old.rollback_target) == (version, target)
            return old.rolled_back(reason) if old is not None and is_as_seen else old

        old, new = await self._change(model, rolled_back)
        return new is not old

    async def assign(
        self, model: str, role: VersionRole, holder: Share, reason: str, expected: str | None = None
    ) -> bool:
        """Give the role to a version. Returns False if that version is the active one, or none is active.

        Raises PointerMoved if another version is active than expected; None expects any.
        """

        def assigned(old: Active | None) -> Active | None:
            _check_expected(model, old, expected)
            return old if old is None or old.version == holder.version else old.assigned(role, holder, reason)

        old, new = await self._change(model, assigned)
        return new is not old

    async def end(self, model: str, role: VersionRole, reason: str, expected: str | None = None) -> None:
        """End the role, whichever version has it. Raises PointerMoved as `assign` does."""

        def ended(old: Active | None) -> Active | None:
            _check_expected(model, old, expected)
            return old and old.assigned(role, None, reason)

        await self._change(model, ended)

    async def initialise(self, model: str, version: str) -> None:
        """Make a version active unless the model has an active version."""
        await self._change(model, lambda old: old or first_pointer(version, "first version"))

    def _of(self, model: str) -> _Seen:
        return self._seen.setdefault(model, _Seen())

    def _followed(self, model: str, active: Active, source: PointerSource) -> None:
        self._on_source(model, source)
        before, self._sources[model] = self._sources.get(model, "redis"), source
        if before == source:
            return
        fields = {"model": model, "version": active.version, "epoch": active.epoch}
        if source == "store":
            log.warning("Redis is away: the store's copy of the pointer is followed", **fields)
        else:
            log.info("Redis is back: its pointer is followed", **fields)

    async def _read(self, model: str, max_age_s: float) -> Active | None:
        """Read the pointer as `read` does, with a copy that was looked at within ``max_age_s`` seconds."""
        seen = self._of(model)
        while True:
            with redis_errors():
                raw: Any = await self._redis.hget(keys.ACTIVE, model)
                if raw is not None and raw == seen.raw and self._copies.is_fresh(model, max_age_s):
                    break
                found = None if raw is None else Active.from_json(raw)
            copy = await self._copies.read(model, max_age_s)
            known = later_of(seen.latest, copy)
            if found is None and known is None:
                if failure := self._copies.failure(model):
                    raise RedisUnavailable(
                        f"Redis has no pointer of {model}, and the store's cannot be read: {failure}"
                    )
                return None
            right = await self._right(model, found, known)
            if right is found:
                seen.latest, seen.raw = right, raw
                break
            if await self._swap(model, raw, right):
                _tell_repair(model, found, right)
                break
        if seen.latest is not None:
            await self._copies.keep(model, seen.latest)
        return seen.latest

    async def _right(self, model: str, found: Active | None, known: Active | None) -> Active:
        """Return what Redis should hold, given what it holds and the latest pointer that is known otherwise."""
        if found is None or (known is not None and not found.is_as_late_as(known)):
            assert known is not None
            return known
        if found.epoch:
            return found
        with redis_errors():
            promoted_by = int(await self._redis.hget(keys.PROMOTED_BY, model) or 0)
        return found.adopted(known, promoted_by)

    async def _change(
        self, model: str, decide: Callable[[Active | None], Active | None]
    ) -> tuple[Active | None, Active | None]:
        """Replace the pointer by what ``decide`` makes of it, and return both once enough replicas have the new one.

        If ``decide`` returns its argument, what is there is written again, so that the replicas have it too. It is
        called again if the pointer moves meanwhile.
        """
        seen = self._of(model)
        while True:
            old = await self._read(model, 0.0)
            new = decide(old)
            if new is None:
                return old, None
            if await self._swap(model, seen.raw, new):
                await self._copies.keep(model, new)
                return old, new

    async def _swap(self, model: str, raw: bytes | None, new: Active) -> bool:
        """Put a pointer into Redis if ``raw`` is there, and wait for replicas. Returns False if it was not."""
        value = new.to_json().encode()
        command = (1, keys.ACTIVE, model, raw or b"", value)
        with redis_errors():
            try:
                is_put = await self._replication.run("pointer", keys.POINTER_BARRIER, "EVALSHA", _SWAP_SHA, *command)
            except NoScriptError:
                is_put = await self._replication.run("pointer", keys.POINTER_BARRIER, "EVAL", _SWAP, *command)
        seen = self._of(model)
        if is_put and (seen.latest is None or new.is_as_late_as(seen.latest)):  # another task may have moved it since
            seen.latest, seen.raw = new, value
        return bool(is_put)


def _check_promotion(model: str, old: Active, version: str, leader_epoch: int, expected: str | None) -> None:
    """Raise Overtaken, PointerMoved or PromotionHeld if the promotion may not be made."""
    if 0 < leader_epoch < old.promoted_by:
        raise Overtaken(f"a trainer that led later than {leader_epoch} has promoted a version of {model}")
    _check_expected(model, old, expected)
    if leader_epoch and old.is_held:
        raise PromotionHeld(
            f"{model} was rolled back to {old.version}: a person must promote a version, which may be this one, before "
            "trainers may again"
        )
    if leader_epoch and version in old.rejected:
        raise PromotionHeld(f"{model} {version} was rolled back: only a person may promote it again")


def _check_expected(model: str, old: Active | None, expected: str | None) -> None:
    """Raise PointerMoved if another version is active than expected, if one is."""
    if old is not None and expected and old.version != expected:
        raise PointerMoved(f"{model} {old.version} is active, not {expected}")


def _tell_repair(model: str, found: Active | None, right: Active) -> None:
    if found is None:
        log.error("Redis lost the pointer: put back", model=model, version=right.version, epoch=right.epoch)
    elif found.epoch == 0 and found.version == right.version:
        log.info("the pointer of an earlier release is taken over", model=model, version=right.version)
    else:
        there = {"found_version": found.version, "found_epoch": found.epoch}
        log.error("Redis has an earlier pointer: put back", model=model, version=right.version, **there)
