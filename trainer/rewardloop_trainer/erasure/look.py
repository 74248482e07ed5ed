"""Looks at what an erasure would erase, and at the versions that learned from it. Nothing is erased."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import redis
import structlog

from rewardloop.formats import keys
from rewardloop.formats.erasing.erasures import LOOK_S, Erasure, Erasures, Taught, UnreadableErasure
from rewardloop.formats.store import ModelStore
from rewardloop_trainer.archive.ledger import Ledger, order
from rewardloop_trainer.erasure.found import in_ledger
from rewardloop_trainer.erasure.learned import versions_that_learned

log = structlog.get_logger()


def looks_wanted(client: redis.Redis) -> bool:
    """Whether somebody waits for a look. Raises redis.RedisError."""
    return bool(client.exists(keys.ERASURE_LOOKS))


def answer_looks(client: redis.Redis, ledger: Ledger, store: ModelStore) -> None:
    """Answer every look that was asked for. What was read from the stream must be in the ledger.

    A look is taken off the list first, so that one which cannot be answered is not tried for ever.

    Raises:
        redis.RedisError: If Redis does not answer.
        OSError: If the ledger cannot be read.
    """
    connection: Any = client
    secrets = {
        name.decode(): bytes.fromhex(each.decode()) for name, each in connection.hgetall(keys.ERASURE_KEYS).items()
    }
    for name, text in connection.hgetall(keys.ERASURE_LOOKS).items():
        connection.hdel(keys.ERASURE_LOOKS, name)
        try:
            asked = Erasure.from_json(text)
        except UnreadableErasure as error:
            log.error("a look at what would be erased cannot be read", reason=str(error))
            continue
        found = _taught(ledger, store, Erasures(secrets, [asked]))
        connection.set(keys.ERASURE_LOOK + asked.look, found.to_json(), ex=LOOK_S)
        log.info("looked at what would be erased", signals=found.signals, versions=len(found.versions))


def _taught(ledger: Ledger, store: ModelStore, asked: Erasures) -> Taught:
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    for part in in_ledger(ledger, asked):
        for each in part.found:
            count[each.aspect] += 1
            first[each.aspect] = min(first.get(each.aspect, each.stream_id), each.stream_id, key=order)
    versions = versions_that_learned(store, first, len(ledger.erasures) + 1)
    return Taught(round(time.time(), 3), count.total(), versions)
