"""Writes the keys of rewardloop in a Redis as lines of JSON, and writes such lines back.

The lines hold values and not Redis's own dumps, so that they fit every version of Redis and Valkey, alone, behind
sentinels or as a cluster. Each key is one line, and a stream is followed by lines of its entries:

    {"key": .., "type": "string", "expires_ms": Unix milliseconds or null, "value": ..}
    {"key": .., "type": "stream", "expires_ms": null, "groups": [name, ..], "last_id": ..}
    {"entries": [[id, {field: value, ..}], ..]}

Keys and values are in base64. What Redis keeps for a process that runs, such as the leader's lock, is left out.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from rewardloop.formats import keys
from rewardloop_local.backup.errors import BackupError

PATTERN = "rewardloop:*"
_LEFT_OUT = (keys.TRAINER_LOCK.encode(),)
_CHUNK = 500


def dump(client: redis.Redis) -> Iterator[str]:
    """Yield the lines of all keys, the stream of signals last.

    An id that is known as seen is then that of a signal in the stream or in the ledger. The other way round, a signal
    that arrives meanwhile would be known and nowhere.

    Of a stream that groups read, the entries that every group has acknowledged are left out: they are archived.
    """
    client_: Any = client
    names = [name for name in client_.scan_iter(PATTERN, count=1_000) if name not in _LEFT_OUT]
    stream = keys.FEEDBACK_STREAM.encode()
    ordered = [*sorted(set(names) - {stream}), *([stream] if stream in names else [])]
    for start in range(0, len(ordered), _CHUNK):
        yield from _lines(client_, ordered[start : start + _CHUNK])


def load(client: redis.Redis, lines: Iterable[str]) -> int:
    """Write keys back, and return how many. Keys that have expired since are left out.

    Every group of a stream reads from its first entry on. What it had read before is recognised in the ledger.

    Raises:
        BackupError: If a line is not one of `dump`.
    """
    client_: Any = client
    written, stream, last_id = 0, b"", ""
    with client_.pipeline(transaction=False) as pipe:
        for line in lines:
            try:
                row = json.loads(line)
                if "entries" in row:
                    for entry_id, fields in row["entries"]:
                        pipe.xadd(stream, {_bytes(f): _bytes(v) for f, v in fields.items()}, id=entry_id)
                else:
                    if stream:
                        _close_stream(client_, pipe, stream, last_id)
                    is_stream, left_ms = row["type"] == "stream", _left_ms(row["expires_ms"])
                    stream, last_id = (_bytes(row["key"]), row["last_id"]) if is_stream else (b"", "")
                    if left_ms is None or left_ms > 0:
                        _write(pipe, row, left_ms)
                        written += 1
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BackupError(f"the dump of Redis cannot be read: {error!r}") from error
            if len(pipe) >= _CHUNK:
                pipe.execute()
        pipe.execute()
        if stream:
            _close_stream(client_, pipe, stream, last_id)
    return written


def names_in(client: redis.Redis) -> Iterator[bytes]:
    """Yield the keys of rewardloop, the leader's lock too."""
    client_: Any = client
    yield from client_.scan_iter(PATTERN, count=1_000)


def _lines(client: Any, names: Sequence[bytes]) -> Iterator[str]:
    """Yield the lines of some keys, which are read together."""
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.type(name)
            pipe.pttl(name)
        found = pipe.execute()
        now_ms, kinds, left = _now_ms(), [kind.decode() for kind in found[::2]], found[1::2]
        for name, kind in zip(names, kinds, strict=True):
            _KINDS[kind].ask(pipe, name) if kind in _KINDS else pipe.exists(name)
        values = pipe.execute()
    for name, kind, left_ms, value in zip(names, kinds, left, values, strict=True):
        about = {"key": _text(name), "type": kind, "expires_ms": now_ms + left_ms if left_ms >= 0 else None}
        if kind == "stream":
            yield from _stream_lines(client, name, about)
        elif kind in _KINDS and (value or value == b""):  # a key without a value has expired meanwhile
            yield json.dumps({**about, "value": _KINDS[kind].tell(value)})
        elif kind not in _KINDS and kind != "none":
            raise BackupError(
                f"Redis has a key of type {kind}, which no process of rewardloop makes: {name.decode()!r}"
            )


def _stream_lines(client: Any, name: bytes, about: dict[str, Any]) -> Iterator[str]:
    groups = client.xinfo_groups(name)
    needed_from, needed = _needed(client, name, groups)
    about["last_id"] = client.xinfo_stream(name)["last-generated-id"].decode()
    about["groups"] = [_text(group["name"]) for group in groups]
    yield json.dumps(about)
    start = "-"
    # What arrives from here on would be newer than the last id.
    while rows := client.xrange(name, start, about["last_id"], count=_CHUNK):
        start = f"({rows[-1][0].decode()}"
        kept = [
            [entry_id.decode(), {_text(f): _text(v) for f, v in fields.items()}]
            for entry_id, fields in rows
            if _order(entry_id) > needed_from or entry_id in needed
        ]
        if kept:
            yield json.dumps({"entries": kept})


def _needed(client: Any, name: bytes, groups: Iterable[dict[str, Any]]) -> tuple[tuple[int, int], set[bytes]]:
    """Return the id after which some group has read nothing yet, and the ids up to it that are not acknowledged."""
    positions, pending = [], set[bytes]()
    for group in groups:
        positions.append(_order(group["last-delivered-id"]))
        start = "-"
        while rows := client.xpending_range(name, group["name"], start, "+", _CHUNK):
            pending.update(row["message_id"] for row in rows)
            start = f"({rows[-1]['message_id'].decode()}"
    return min(positions, default=(-1, 0)), pending


@dataclass(frozen=True, slots=True)
class _Kind:
    """How keys of a type are read, told in JSON, and written."""

    ask: Callable[[Any, bytes], Any]
    tell: Callable[[Any], Any]
    write: Callable[[Any, bytes, Any], Any]


_KINDS = {
    "string": _Kind(
        lambda client, name: client.get(name),
        lambda value: _text(value),
        lambda client, name, value: client.set(name, _bytes(value)),
    ),
    "hash": _Kind(
        lambda client, name: client.hgetall(name),
        lambda value: {_text(f): _text(v) for f, v in value.items()},
        lambda client, name, value: client.hset(name, mapping={_bytes(f): _bytes(v) for f, v in value.items()}),
    ),
    "set": _Kind(
        lambda client, name: client.smembers(name),
        lambda value: sorted(map(_text, value)),
        lambda client, name, value: client.sadd(name, *map(_bytes, value)),
    ),
    "list": _Kind(
        lambda client, name: client.lrange(name, 0, -1),
        lambda value: list(map(_text, value)),
        lambda client, name, value: client.rpush(name, *map(_bytes, value)),
    ),
    "zset": _Kind(
        lambda client, name: client.zrange(name, 0, -1, withscores=True),
        lambda value: {_text(member): score for member, score in value},
        lambda client, name, value: client.zadd(name, {_bytes(m): score for m, score in value.items()}),
    ),
}


def _write(pipe: Any, row: dict[str, Any], left_ms: int | None) -> None:
    name = _bytes(row["key"])
    if row["type"] == "stream":
        for group in row["groups"]:
            pipe.xgroup_create(name, _bytes(group), id="0", mkstream=True)
    else:
        _KINDS[row["type"]].write(pipe, name, row["value"])
    if left_ms is not None:
        pipe.pexpire(name, left_ms)


def _close_stream(client: Any, pipe: Any, stream: bytes, last_id: str) -> None:
    """Write what waits, and let the next id of a stream be higher than all that it ever had.

    A stream without entries and groups is none.
    """
    pipe.execute()
    if client.exists(stream):
        client.execute_command("XSETID", stream, last_id)  # redis-py has no method for it


def _left_ms(expires_ms: int | None) -> int | None:
    return None if expires_ms is None else expires_ms - _now_ms()


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence or 0)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
