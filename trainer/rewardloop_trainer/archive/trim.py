"""Trims the feedback stream of the entries that every group has read and acknowledged, and of no others."""

from __future__ import annotations

import redis

from rewardloop.formats import keys
from rewardloop_trainer.archive.ledger import order


def trim_archived(client: redis.Redis) -> int:
    """Trim the stream up to the first entry that some group has not read or not acknowledged.

    Nothing is trimmed while no group exists.

    Returns:
        The number of entries that the stream still holds.

    Raises:
        redis.RedisError: If Redis does not answer.
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
