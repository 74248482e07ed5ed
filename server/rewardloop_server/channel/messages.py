"""messages: the payloads of frames. Token ids and logits are bytes as numpy and array have them; seldom ones are JSON.

Deadlines are on the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import InternalError, RewardloopError, Violation, errors_of
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.scoring.lane import Scored

_LANES = {lane: number for number, lane in enumerate(QUEUE_LANES)}
_ERRORS = {error.reason: error for error in errors_of()}

# Lane, flags, deadline, bytes of the caller's name, bytes of the account's name; then tokens, or handle and rows.
_RESERVE = struct.Struct("<BBdHHQ")
_GROUP = struct.Struct("<BBdHHII")
_HAS_DEADLINE, _IS_BOUNDED, _HAS_TYPES, _HAS_ACCOUNT = 1, 2, 4, 8

# Seconds in the queue and of runs; rows and tokens of the last run; rows and heads of the logits.
_SCORED = struct.Struct("<ddIIII")

# Every frame of the engine carries its state: a bit for each lane in which bulk calls have room, and one while it is
# stuck.
IS_STUCK = 1 << len(QUEUE_LANES)


# The payload of AWAY while the server is away; else it is empty.
IS_AWAY = b"\x01"


class EngineSaid(Exception):
    """What was raised in the engine's process, as the cause of an error that it sent. It is for the log alone."""


class Place(NamedTuple):
    """Where a group waits, and for whom; see `Batcher.score`."""

    lane: str
    deadline: float | None
    caller: str
    account: str


class Room(NamedTuple):
    """Room that a group asks for; see `Batcher.reserved`."""

    place: Place
    tokens: int
    is_bounded: bool


class Asked(NamedTuple):
    """A group that a front hands over, for the version that it holds under this handle."""

    place: Place
    handle: int
    rows: list[Encoded]


def room_to_bytes(room: Room) -> bytes:
    """Return the payload of RESERVE."""
    lane, flags, deadline, names, lengths = _packed(room.place)
    flags |= _IS_BOUNDED if room.is_bounded else 0
    return _RESERVE.pack(lane, flags, deadline, *lengths, room.tokens) + names


def room_from_bytes(data: bytes) -> Room:
    """Read what `room_to_bytes` wrote."""
    lane, flags, deadline, caller, account, tokens = _RESERVE.unpack_from(data)
    place, _ = _unpacked(data, _RESERVE.size, lane, flags, deadline, caller, account)
    return Room(place, tokens, bool(flags & _IS_BOUNDED))


def group_to_bytes(place: Place, handle: int, rows: Sequence[Encoded]) -> bytes:
    """Return the payload of SCORE. Of each row it has what a run needs: ids, segments, and where the prompt ends."""
    lane, flags, deadline, names, lengths = _packed(place)
    has_types = rows[0].token_type_ids is not None
    flags |= _HAS_TYPES if has_types else 0
    sizes, ids = array("I"), array("i")
    for row in rows:
        sizes.append(len(row.ids))
        sizes.append(row.prompt_tokens)
        ids.extend(row.ids)
    parts = [_GROUP.pack(lane, flags, deadline, *lengths, handle, len(rows)), names, sizes.tobytes(), ids.tobytes()]
    if has_types:
        parts += [bytes(row.token_type_ids or ()) for row in rows]
    return b"".join(parts)


def group_from_bytes(data: bytes) -> Asked:
    """Read what `group_to_bytes` wrote."""
    lane, flags, deadline, caller, account, handle, count = _GROUP.unpack_from(data)
    place, at = _unpacked(data, _GROUP.size, lane, flags, deadline, caller, account)
    ids_at = at + 8 * count
    sizes = array("I", data[at:ids_at])
    types_at = ids_at + 4 * sum(sizes[::2])
    rows = []
    for length, prompt in zip(sizes[::2], sizes[1::2], strict=True):
        ids = array("i", data[ids_at : ids_at + 4 * length]).tolist()
        types = list(data[types_at : types_at + length]) if flags & _HAS_TYPES else None
        rows.append(Encoded(ids, types, truncated=False, prompt_tokens=prompt))
        ids_at, types_at = ids_at + 4 * length, types_at + length
    return Asked(place, handle, rows)


def scored_to_bytes(scored: Scored) -> bytes:
    """Return the payload of SCORED."""
    rows, heads = scored.logits.shape
    head = _SCORED.pack(scored.queue_s, scored.run_s, scored.run_rows, scored.run_tokens, rows, heads)
    return head + scored.logits.tobytes()


def scored_from_bytes(data: bytes) -> Scored:
    """Read what `scored_to_bytes` wrote."""
    queue_s, run_s, run_rows, run_tokens, rows, heads = _SCORED.unpack_from(data)
    logits = np.frombuffer(data, np.float32, offset=_SCORED.size).reshape(rows, heads)
    return Scored(logits, queue_s, run_s, run_rows, run_tokens)


def error_to_bytes(error: RewardloopError) -> bytes:
    """Return the payload of FAILED."""
    return json_to_bytes(
        {
            "reason": error.reason,
            "message": error.message,
            "violations": [[each.field, each.description] for each in error.violations],
            "retry_after_ms": error.retry_after_ms,
            "cause": str(error.__cause__) if error.__cause__ else "",
        }
    )


def error_from_bytes(data: bytes) -> RewardloopError:
    """Read what `error_to_bytes` wrote: an error of the same class with the same details."""
    said = json.loads(data)
    kind = _ERRORS.get(said["reason"], InternalError)
    error = kind.__new__(kind)
    violations = [Violation(*each) for each in said["violations"]]
    RewardloopError.__init__(error, said["message"], violations=violations, retry_after_ms=said["retry_after_ms"])
    if said["cause"]:
        error.__cause__ = EngineSaid(said["cause"])
    return error


def json_to_bytes(said: dict[str, Any]) -> bytes:
    """Return the payload of a frame that is seldom sent."""
    return json.dumps(said).encode()


def json_from_bytes(data: bytes) -> dict[str, Any]:
    """Read what `json_to_bytes` wrote."""
    said: dict[str, Any] = json.loads(data)
    return said


def _packed(place: Place) -> tuple[int, int, float, bytes, tuple[int, int]]:
    """Return lane, flags, deadline, the two names together, and the bytes of each."""
    caller = place.caller.encode("utf-8", "surrogatepass")
    flags, deadline = (0, 0.0) if place.deadline is None else (_HAS_DEADLINE, place.deadline)
    account = b""
    if place.account != place.caller:
        flags |= _HAS_ACCOUNT
        account = place.account.encode("utf-8", "surrogatepass")
    return _LANES[place.lane], flags, deadline, caller + account, (len(caller), len(account))


def _unpacked(
    data: bytes, at: int, lane: int, flags: int, deadline: float, caller: int, account: int
) -> tuple[Place, int]:
    """Return the place, whose names begin at ``at``, and where they end."""
    middle, end = at + caller, at + caller + account
    name = data[at:middle].decode("utf-8", "surrogatepass")
    shares = data[middle:end].decode("utf-8", "surrogatepass") if flags & _HAS_ACCOUNT else name
    return Place(QUEUE_LANES[lane], deadline if flags & _HAS_DEADLINE else None, name, shares), end
