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
from collections.abc import Callable, Iterable, Iterator
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
    for name in [*sorted(set(names) - {stream}), *([stream] if stream in names else [])]:
        kind = client_.type(name).decode()
        left_ms = client_.pttl(name)
        if kind == "none" or left_ms == -2:  # it has expired
            continue
        about = {"key": _text(name), "type": kind, "expires_ms": _now_ms() + left_ms if left_ms >= 0 else None}
        if kind == "stream":
            yield from _stream_lines(client_, name, about)
        else:
            yield json.dumps({**about, "value": _value(client_, name, kind)})


def load(client: redis.Redis, lines: Iterable[str]) -> int:
    """Write keys back, and return how many. Keys that have expired since are left out.

    Every group of a stream reads from its first entry on. What it had read before is recognised in the ledger.

    Raises:
        BackupError: If a line is not one of `dump`.
    """
    client_: Any = client
    written, stream, last_id = 0, b"", ""
    for line in lines:
        try:
            row = json.loads(line)
            if "entries" in row:
                for entry_id, fields in row["entries"]:
                    client_.xadd(stream, {_bytes(f): _bytes(v) for f, v in fields.items()}, id=entry_id)
                continue
            _close_stream(client_, stream, last_id)
            stream, last_id = b"", ""
            name, expires_ms = _bytes(row["key"]), row["expires_ms"]
            if expires_ms is not None and expires_ms <= _now_ms():
                continue
            written += 1
            if row["type"] == "stream":
                stream, last_id = name, row["last_id"]
                for group in row["groups"]:
                    client_.xgroup_create(name, _bytes(group), id="0", mkstream=True)
            else:
                _WRITERS[row["type"]](client_, name, row["value"])
            if expires_ms is not None:
                client_.pexpire(name, max(1, expires_ms - _now_ms()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupError(f"the dump of Redis cannot be read: {error!r}") from error
    _close_stream(client_, stream, last_id)
    return written


def names_in(client: redis.Redis) -> Iterator[bytes]:
    """Yield the keys of rewardloop, the leader's lock too."""
    client_: Any = client
    yield from client_.scan_iter(PATTERN, count=1_000)


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


def _value(client: Any, name: bytes, kind: str) -> Any:
    match kind:
        case "string":
            return _text(client.get(name) or b"")
        case "hash":
            return {_text(f): _text(v) for f, v in client.hgetall(name).items()}
        case "set":
            return sorted(map(_text, client.smembers(name)))
        case "list":
            return [_text(each) for each in client.lrange(name, 0, -1)]
        case "zset":
            return {_text(member): score for member, score in client.zrange(name, 0, -1, withscores=True)}
    raise BackupError(f"Redis has a key of type {kind}, which no process of rewardloop makes: {name.decode()!r}")


_WRITERS: dict[str, Callable[[Any, bytes, Any], Any]] = {
    "string": lambda client, name, value: client.set(name, _bytes(value)),
    "hash": lambda client, name, value: client.hset(name, mapping={_bytes(f): _bytes(v) for f, v in value.items()}),
    "set": lambda client, name, value: client.sadd(name, *map(_bytes, value)),
    "list": lambda client, name, value: client.rpush(name, *map(_bytes, value)),
    "zset": lambda client, name, value: client.zadd(name, {_bytes(m): score for m, score in value.items()}),
}


def _close_stream(client: Any, stream: bytes, last_id: str) -> None:
    """Let the next id of a stream be higher than all that it ever had. A stream without entries and groups is none."""
    if stream and client.exists(stream):
        client.execute_command("XSETID", stream, last_id)  # redis-py has no method for it


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence or 0)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
