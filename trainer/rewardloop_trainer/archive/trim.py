"""Frees Redis of what every reader of the feedback stream is done with; nothing unread or pending is ever trimmed."""

from __future__ import annotations

import redis

from rewardloop.formats import keys
from rewardloop_trainer.archive.ledger import order


def trim_archived(client: redis.Redis) -> int:
    """Trim the stream up to the first entry that some group has not read or not acknowledged.

    Returns how many entries the stream still holds. Does nothing while no group exists. Raises redis.RedisError.
    """
    needed: list[tuple[int, int]] = []
    for group in client.xinfo_groups(keys.FEEDBACK_STREAM):
        if group["pending"]:
            oldest = client.xpending(keys.FEEDBACK_STREAM, group["name"])["min"]
            if oldest is not None:
                needed.append(order(oldest.decode()))
                continue
        milliseconds, sequence = order(group["last-delivered-id"].decode())
        needed.append((milliseconds, sequence + 1))
    if needed:
        milliseconds, sequence = min(needed)
        client.xtrim(keys.FEEDBACK_STREAM, minid=f"{milliseconds}-{sequence}", approximate=False)
    return int(client.xlen(keys.FEEDBACK_STREAM))
