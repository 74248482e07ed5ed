"""Takes an import back: its signals leave the ledger, and their event_ids can be recorded again.

The ids are forgotten first. A process that is killed in between leaves the entry of the retraction pending, and the
next one does all of it again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from rewardloop.formats import keys
from rewardloop_trainer.archive.segment_files import order

# What clocks of servers and of Redis, one after the other, are allowed to differ.
CLOCKS_DIFFER_S = 86_400
_WINDOWS = 4
_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Retraction:
    """What an entry of the stream takes back: the signals of this import that this caller sent; "" is no caller.

    Attributes:
        since: The place in the ledger before which none of them is, as far as clocks can be trusted; "" if whoever
            takes it back has not said how old it is.
    """

    import_id: str
    caller: str
    since: str = ""


def retraction_in(stream_id: str, fields: Mapping[bytes, bytes]) -> Retraction | None:
    """Return the retraction that the entry at a place holds, or None for one that holds a signal."""
    import_id = fields.get(keys.RETRACTION_FIELD.encode())
    if import_id is None:
        return None
    caller = fields.get(keys.CALLER_FIELD.encode(), b"")
    age = fields.get(keys.RETRACTION_AGE_FIELD.encode(), b"")
    since = f"{max(0, order(stream_id)[0] - (int(age) + CLOCKS_DIFFER_S) * 1_000)}-0" if age.isdigit() else ""
    return Retraction(import_id.decode("utf-8", "replace"), caller.decode("utf-8", "replace"), since)


def forget_ids(client: redis.Redis, event_ids: Collection[str], caller: str) -> None:
    """Make Redis forget event_ids of a caller, so that they can be recorded again. Raises redis.RedisError."""
    anything: Any = client  # redis-py's types are unions over every protocol version and decoding
    window = int(anything.hget(keys.FEEDBACK_IDS, "window") or 0)
    ids = list(event_ids)
    for start in range(0, len(ids), _AT_ONCE):
        with anything.pipeline(transaction=False) as commands:
            for event_id in ids[start : start + _AT_ONCE]:
                for name, field in keys.places_of(event_id, caller, window, _WINDOWS):
                    commands.hdel(name, field)
                commands.unlink(f"{keys.FEEDBACK_SEEN}{event_id}")
            commands.execute()
