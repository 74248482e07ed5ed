"""Begins erasures, says how far they have come, and erases what the spool of this server holds.

A request is a digest in Redis, which every holder of signals reads. A holder reports there what it has done. A server
without a spool keeps nothing, and holds nobody up.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.formats.erasing.erasures import (
    LOOK_S,
    TRAINER,
    Erasure,
    Erasures,
    Kind,
    Taught,
    UnreadableErasure,
    digest_of,
    new_key,
)
from rewardloop.v1 import feedback_pb2
from rewardloop_server.calls.errors import RewardloopError, UnknownErasure
from rewardloop_server.calls.redis_link import redis_errors
from rewardloop_server.calls.replication import Replication

log = structlog.get_logger()

_POLL_S = 1.0
_SEEN_EVERY_S = 10.0
_AWAY_S = 60.0
_SETTLED_S = 3.0
_FORGOTTEN_S = 30 * 86_400.0

_DONE, _PENDING, _AWAY = (
    feedback_pb2.ERASURE_STATE_DONE,
    feedback_pb2.ERASURE_STATE_PENDING,
    feedback_pb2.ERASURE_STATE_AWAY,
)


@dataclass(frozen=True, slots=True)
class Spooled:
    """What was erased of a spool: how many signals, and what could not be searched."""

    signals: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a holder has done of an erasure.

    Attributes:
        erased: How many things it erased, by what they were.
        notes: What it could not erase, or somebody has to do by hand.
        versions: The versions that learned from the signals: model, version, and whether directly.
    """

    erased: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: tuple[tuple[str, str, bool], ...] = ()

    def to_json(self) -> str:
        return json.dumps({"erased": dict(self.erased), "notes": self.notes, "versions": self.versions})

    @classmethod
    def from_json(cls, text: bytes) -> Report:
        raw: dict[str, Any] = json.loads(text)
        versions = tuple((str(model), str(version), bool(own)) for model, version, own in raw["versions"])
        return cls(raw["erased"], tuple(raw["notes"]), versions)


class ErasureDesk:
    """The erasures of a deployment, as this server sees them.

    Args:
        redis: Where they are.
        replication: Writes what must outlive a failover.
        spool: The directory of this server's spool; "" if it has none.
    """

    def __init__(self, redis: Redis, replication: Replication | None = None, spool: str = "") -> None:
        self._redis: Any = redis  # its types are unions over every protocol version and decoding
        self._replication = replication or Replication(redis)
        self._holder = f"spool {socket.gethostname()}:{spool}" if spool else ""
        self._changed: bytes | None = b"never read"
        self._reported: set[str] = set()
        self.known = Erasures()

    async def run(self, erase_spooled: Callable[[Callable[[bytes], bool]], Awaitable[Spooled]]) -> None:
        """Follow the erasures and carry them out on the spool, until cancelled.

        Args:
            erase_spooled: Erases from the spool the serialized events for which the function that it is given is true.
        """
        seen_at = float("-inf")
        while True:
            try:
                await self.refresh()
                if self._holder:
                    if time.monotonic() - seen_at >= _SEEN_EVERY_S:
                        with redis_errors():
                            await self._run("HSET", keys.ERASURE_HOLDERS, self._holder, str(time.time()))
                        seen_at = time.monotonic()
                    await self._carry_out(erase_spooled)
            except (RewardloopError, OSError) as error:
                log.info("erasures wait", error=str(error))
            await asyncio.sleep(_POLL_S)

    def hidden(self, kind: str, text: str) -> str:
        """Return what stands for an id of this kind in logs."""
        return self.known.hidden(kind, text)

    async def refresh(self) -> None:
        """Read the erasures if they have changed, and make the key if there is none. Raises RedisUnavailable."""
        with redis_errors():
            changed: bytes | None = await self._redis.get(keys.ERASURES_CHANGED)
            if changed == self._changed and self.known.keys:
                return
            secrets_ = await self._secrets()
            if not secrets_:
                name, secret = new_key()
                # Not by `Replication`: the key lies in another slot of a cluster, and the trainer keeps a copy.
                await self._redis.hsetnx(keys.ERASURE_KEYS, name, secret.hex())
                secrets_ = await self._secrets()
            raw: Mapping[bytes, bytes] = await self._redis.hgetall(keys.ERASURES)
        found = []
        for text in raw.values():
            try:
                found.append(Erasure.from_json(text))
            except UnreadableErasure as error:
                log.error("an erasure cannot be read", reason=str(error))
        self.known = Erasures(secrets_, found)
        self._changed = changed

    async def erased_among(self, events: list[tuple[str, str]]) -> list[bool]:
        """Say of each event_id and caller whether its signal was erased. Raises RedisUnavailable."""
        if not self.known.all or not events:
            return [False] * len(events)
        digests = [self.known.event_digests(*each) for each in events]
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as commands:
                for of_event in digests:
                    for digest in of_event:
                        commands.sismember(keys.ERASED_EVENTS, digest)
                answers = iter(await commands.execute())
        return [sum(bool(next(answers)) for _ in of_event) > 0 for of_event in digests]

    async def begin(self, kind: Kind, text: str, caller: str | None) -> str:
        """Begin the erasure of a person or a generation, and return its id. Raises RedisUnavailable or StoreFull."""
        asked = await self._asked(kind, text, caller)
        for each in self.known.all:
            if each.same_as(asked) and not (await self.progress(each.erasure_id)).done:
                return each.erasure_id
        with redis_errors():
            if kind == "generation":
                await self._redis.delete(keys.GENERATION + text)
                await self._redis.delete(keys.GENERATION_CALLER + text)
            await self._run("HSET", keys.ERASURES, asked.erasure_id, asked.to_json())
            await self._run("INCR", keys.ERASURES_CHANGED)
        await self.refresh()
        log.warning("an erasure was asked for", erasure_id=asked.erasure_id, kind=kind, digest=asked.digest)
        return asked.erasure_id

    async def progress(self, erasure_id: str) -> feedback_pb2.EraseResponse:
        """Say how far an erasure has come. Raises UnknownErasure and RedisUnavailable."""
        with redis_errors():
            text: bytes | None = await self._redis.hget(keys.ERASURES, erasure_id)
            if text is None:
                raise UnknownErasure(f"no erasure has the id {erasure_id}")
            asked = Erasure.from_json(text)
            raw: Mapping[bytes, bytes] = await self._redis.hgetall(keys.ERASURE_REPORTS + erasure_id)
            seen: Mapping[bytes, bytes] = await self._redis.hgetall(keys.ERASURE_HOLDERS)
            reports = {name.decode(): Report.from_json(report) for name, report in raw.items()}
            ages = {name.decode(): time.time() - float(at) for name, at in seen.items()}
        response = feedback_pb2.EraseResponse(erasure_id=erasure_id)
        response.requested_time.FromNanoseconds(int(asked.requested_at * 1e9))
        names = {TRAINER, *reports, *(name for name, age in ages.items() if age < _FORGOTTEN_S)}
        for name in sorted(names, key=lambda name: (name != TRAINER, name)):
            report = reports.get(name)
            is_away = name != TRAINER and ages.get(name, _AWAY_S) >= _AWAY_S
            state = _DONE if report else _AWAY if is_away else _PENDING
            done = report or Report()
            response.holders.add(name=name, state=state, erased=done.erased, notes=done.notes)
            for model, version, own in done.versions:
                response.versions.add(model=model, version=version, directly=own)
        # A server that has just come back, or whose Redis has, says within a few seconds that it has a spool.
        is_settled = time.time() - asked.requested_at >= _SETTLED_S
        response.done = is_settled and all(each.state != _PENDING for each in response.holders)
        return response

    async def look(self, kind: Kind, text: str, caller: str | None) -> feedback_pb2.ListTaughtVersionsResponse:
        """Say what an erasure would erase, once the trainer has. Raises RedisUnavailable or StoreFull."""
        asked = await self._asked(kind, text, caller)
        with redis_errors():
            answer: bytes | None = await self._redis.get(keys.ERASURE_LOOK + asked.look)
            if answer is None:
                await self._redis.hset(keys.ERASURE_LOOKS, asked.look, asked.to_json())
                await self._redis.expire(keys.ERASURE_LOOKS, LOOK_S)
                return feedback_pb2.ListTaughtVersionsResponse()
            found = Taught.from_json(answer)
        response = feedback_pb2.ListTaughtVersionsResponse(done=True, signals=found.signals)
        response.look_time.FromNanoseconds(int(found.looked_at * 1e9))
        for model, version, own in found.versions:
            response.versions.add(model=model, version=version, directly=own)
        return response

    async def _asked(self, kind: Kind, text: str, caller: str | None) -> Erasure:
        """Return what stands for a person or a generation, under the key of the deployment."""
        await self.refresh()
        key = self.known.key()
        if key is None:
            raise UnknownErasure("there is no key of erasures")
        name, secret = key
        digest = digest_of(secret, kind, text).hex()
        return Erasure(secrets.token_hex(8), kind, digest, name, caller, round(time.time(), 3))

    async def _carry_out(self, erase_spooled: Callable[[Callable[[bytes], bool]], Awaitable[Spooled]]) -> None:
        """Erase from the spool, and report it. A server that is killed before the report does it again."""
        for each in self.known.all:
            if each.erasure_id in self._reported:
                continue
            where = keys.ERASURE_REPORTS + each.erasure_id
            with redis_errors():
                is_reported = await self._redis.hexists(where, self._holder)
            if not is_reported:
                alone = Erasures(self.known.keys, [each])

                def is_erased(data: bytes, alone: Erasures = alone) -> bool:
                    return alone.is_erased(feedback_pb2.FeedbackEvent.FromString(data))

                spooled = await erase_spooled(is_erased)
                report = Report({"spool": spooled.signals}, spooled.notes)
                with redis_errors():
                    await self._run("HSET", where, self._holder, report.to_json())
                log.info("erased from the spool", erasure_id=each.erasure_id, signals=spooled.signals)
            self._reported.add(each.erasure_id)

    async def _secrets(self) -> dict[str, bytes]:
        found: Mapping[bytes, bytes] = await self._redis.hgetall(keys.ERASURE_KEYS)
        return {name.decode(): bytes.fromhex(secret.decode()) for name, secret in found.items()}

    async def _run(self, *command: str) -> None:
        await self._replication.run("signals", keys.FEEDBACK_BARRIER, *command)
