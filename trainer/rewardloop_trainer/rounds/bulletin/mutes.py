"""Which people operators have muted."""

from __future__ import annotations

from typing import Any

import redis

from rewardloop.formats import keys


def muted_people(client: redis.Redis) -> tuple[str, ...]:
    """Return the muted people (`formats.signals.person_of`), in order. Raises redis.RedisError."""
    connection: Any = client  # its types are unions over every protocol version and decoding
    return tuple(sorted(name.decode() if isinstance(name, bytes) else name for name in connection.hkeys(keys.MUTES)))
