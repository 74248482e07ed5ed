"""What trainers publish in Redis, and which people are muted there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeVar

import structlog
from google.protobuf.message import DecodeError, Message
from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.formats.operating.rounds import add_details, parted
from rewardloop.formats.signals import key_of, parts_of
from rewardloop.v1 import operations_pb2
from rewardloop_server.calls.redis_link import redis_errors
from rewardloop_server.calls.replication import Replication

M = TypeVar("M", bound=Message)
log = structlog.get_logger()


class Published:
    """Reads what trainers publish. Every method raises RedisUnavailable, and those that write StoreFull too.

    Args:
        redis: Where it is.
        replication: How many replicas must have what an operator decides.
    """

    def __init__(self, redis: Redis, replication: Replication) -> None:
        self._redis: Any = redis  # its types are unions over every protocol version and decoding
        self._replication = replication

    async def trainer(self) -> operations_pb2.TrainerStatus | None:
        """Return what the leading trainer says of itself; None if none has said so lately."""
        with redis_errors():
            data = await self._redis.get(keys.TRAINER_STATUS)
        return None if data is None else _read(operations_pb2.TrainerStatus, data)

    async def rounds(self, model: str = "") -> list[operations_pb2.Round]:
        """Return the rounds of a model, or of all, newest first, without curves and examples."""
        with redis_errors():
            found: Mapping[bytes, bytes] = await self._redis.hgetall(keys.ROUNDS)
        read = (_read(operations_pb2.Round, data) for data in found.values())
        rounds = [parted(each)[0] for each in read if each is not None and model in ("", each.model)]
        return sorted(rounds, key=lambda each: (each.start_time.ToNanoseconds(), each.number), reverse=True)

    async def round(self, model: str, trainer_id: str, number: int) -> operations_pb2.Round | None:
        """Return one round, or None if there is no such round."""
        field = keys.round_field(model, trainer_id, number)
        with redis_errors():
            data = await self._redis.hget(keys.ROUNDS, field)
            details = await self._redis.hget(keys.ROUND_DETAILS, field)
        found = None if data is None else _read(operations_pb2.Round, data)
        more = None if details is None else _read(operations_pb2.Round, details)
        if found is not None and more is not None:
            add_details(found, more)
        return found

    async def crowd(self) -> operations_pb2.Crowd:
        """Return what the trainer's last round knows of people, with the mutes; empty before the first round."""
        with redis_errors():
            data, muted = await self._redis.get(keys.CROWD), await self._redis.hgetall(keys.MUTES)
        crowd = None if data is None else _read(operations_pb2.Crowd, data)
        crowd = crowd or operations_pb2.Crowd()
        mutes = {name.decode(): _read(operations_pb2.Mute, mute) for name, mute in muted.items()}
        for person in crowd.people:
            mute = mutes.pop(key_of(person.caller, person.annotator_id), None)
            if mute is not None:
                person.mute.CopyFrom(mute)
        for name, mute in sorted(mutes.items()):
            caller, annotator = parts_of(name)
            crowd.people.add(caller=caller, annotator_id=annotator, mute=mute or operations_pb2.Mute())
        return crowd

    async def mute(self, person: str, decided_by: str, reason: str) -> None:
        """Mute a person. It is durable when this returns."""
        mute = operations_pb2.Mute(decided_by=decided_by, reason=reason)
        mute.decide_time.FromNanoseconds(time.time_ns())
        await self._write("HSET", keys.MUTES, person, mute.SerializeToString())

    async def unmute(self, person: str) -> None:
        """Take a mute back. It is durable when this returns."""
        await self._write("HDEL", keys.MUTES, person)

    async def _write(self, *command: Any) -> None:
        with redis_errors():
            await self._replication.run("operations", keys.OPERATIONS_BARRIER, *command)


def _read(kind: type[M], data: bytes) -> M | None:
    """Return the message, or None if the bytes are none of this kind, which is logged."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        log.warning("what a trainer published cannot be read", kind=kind.DESCRIPTOR.name, error=str(error))
        return None
