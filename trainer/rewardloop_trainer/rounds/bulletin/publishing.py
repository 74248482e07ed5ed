"""Sends the board to Redis, where the server reads it. A failure is logged when it begins, and tried again."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import redis
import structlog
from google.protobuf.message import DecodeError

from rewardloop.formats import keys
from rewardloop.formats.operating.rounds import add_details, parted
from rewardloop.v1 import operations_pb2
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES
from rewardloop_trainer.rounds.bulletin.board import Board

log = structlog.get_logger()

# How many rounds of each model are kept.
KEPT_ROUNDS = 50
_EXPIRES_S = 60
_EVERY_S = 10.0


def published_rounds(client: redis.Redis) -> dict[str, operations_pb2.Round]:
    """Return the rounds that are in Redis, by field, without those that cannot be read. Raises redis.RedisError."""
    connection: Any = client  # its types are unions over every protocol version and decoding
    found = _read(connection.hgetall(keys.ROUNDS))
    for field, details in _read(connection.hgetall(keys.ROUND_DETAILS)).items():
        if field in found:
            add_details(found[field], details)
    return found


def _read(raw: Mapping[bytes, bytes]) -> dict[str, operations_pb2.Round]:
    found = {}
    for field, data in raw.items():
        try:
            found[field.decode()] = operations_pb2.Round.FromString(data)
        except (DecodeError, UnicodeDecodeError) as error:
            log.warning("a published round cannot be read", field=repr(field), error=str(error))
    return found


def keep_published(client: redis.Redis, board: Board, stop: threading.Event, look_s: float = 1.0) -> None:
    """Publish what changes on the board until ``stop`` is set, and once more then.

    Args:
        client: The Redis with the feedback stream.
        board: The board.
        stop: Ends the publication.
        look_s: How often the board is looked at.
    """
    told_at, is_away = -_EVERY_S, False
    while True:
        has_stopped = stop.wait(look_s if told_at > 0 else 0)
        with board.publishing:
            rounds, crowd = board.take_changed()
            if has_stopped or rounds or crowd is not None or time.monotonic() - told_at >= _EVERY_S:
                try:
                    _publish(client, board.trainer(), rounds, crowd)
                    told_at, is_away = time.monotonic(), False
                except REDIS_FAILURES as error:
                    board.put_back(rounds, crowd)
                    if not is_away:
                        log.warning("operators do not see what the trainer does", error=str(error))
                    is_away = True
        if has_stopped:
            return


def _publish(
    client: redis.Redis,
    trainer: operations_pb2.TrainerStatus,
    rounds: Mapping[str, operations_pb2.Round],
    crowd: operations_pb2.Crowd | None,
) -> None:
    client.set(keys.TRAINER_STATUS, trainer.SerializeToString(), ex=_EXPIRES_S)
    if crowd is not None:
        client.set(keys.CROWD, crowd.SerializeToString())
    if rounds:
        parts = {field: parted(each) for field, each in rounds.items()}
        client.hset(keys.ROUND_DETAILS, mapping={field: each.SerializeToString() for field, (_, each) in parts.items()})
        client.hset(keys.ROUNDS, mapping={field: each.SerializeToString() for field, (each, _) in parts.items()})
    if any(each.outcome for each in rounds.values()):
        _drop_old(client)


def _drop_old(client: redis.Redis) -> None:
    connection: Any = client
    newest = sorted(
        _read(connection.hgetall(keys.ROUNDS)).items(),
        key=lambda each: each[1].start_time.ToNanoseconds(),
        reverse=True,
    )
    count: dict[str, int] = {}
    old = []
    for field, each in newest:
        count[each.model] = count.get(each.model, 0) + 1
        if count[each.model] > KEPT_ROUNDS:
            old.append(field)
    if old:
        client.hdel(keys.ROUNDS, *old)
        client.hdel(keys.ROUND_DETAILS, *old)
