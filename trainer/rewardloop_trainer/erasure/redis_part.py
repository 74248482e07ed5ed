"""Erases signals from Redis: stream, dead letters, remembered ids, counts, generations, and the files behind them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import redis
import structlog

from rewardloop.formats import keys
from rewardloop.formats.erasing.erasures import Erasures
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.dead_letters import drop, letters
from rewardloop_trainer.archive.entry import InvalidEntry, decode
from rewardloop_trainer.archive.retraction import forget_ids
from rewardloop_trainer.erasure.found import Found, of_event

log = structlog.get_logger()

_PAGE = 500
_MINUTE_S, _DAY_S = 60, 86_400
_REWRITE_S = 1_800.0
_POLL_S = 0.1


class RewriteFailed(OSError):
    """Raised when Redis does not rewrite its files. They may hold what was erased."""


def in_stream(client: redis.Redis, erasures: Erasures) -> Iterator[Found]:
    """Yield the signals of the stream that are erased. Raises redis.RedisError."""
    for stream_id, fields in entries(client, keys.FEEDBACK_STREAM):
        try:
            event = decode(stream_id, fields).event
        except InvalidEntry:
            continue  # it becomes a dead letter when it is read
        if (found := of_event(stream_id, event, erasures)) is not None:
            yield found


def erase_letters(client: redis.Redis, erasures: Erasures) -> int:
    """Delete the dead letters of erased signals, also those whose bytes are no event. Returns how many."""
    gone = 0
    for letter in letters(client):
        event = letter.event
        is_gone = erasures.is_in(letter.data) if event is None else _is_erased_letter(letter.letter_id, event, erasures)
        gone += bool(is_gone and drop(client, letter))
    return gone


def _is_erased_letter(letter_id: str, event: feedback_pb2.FeedbackEvent, erasures: Erasures) -> bool:
    if not event.HasField("arrival_time"):
        event.arrival_time.FromMilliseconds(int(letter_id.partition("-")[0]))
    return erasures.is_erased(event)


def erase_signals(
    client: redis.Redis, found: Collection[Found], waiting: Collection[Found], generations: Iterable[str]
) -> Counter[str]:
    """Delete what Redis keeps of signals.

    Args:
        client: Where it is.
        found: All signals that are erased.
        waiting: Those of them that are in the stream. The place of another one may be that of another entry.
        generations: The generations that are erased.

    Returns:
        How many entries of the stream and how many generations are gone.

    Raises:
        redis.RedisError: If Redis does not answer.
    """
    connection: Any = client
    by_caller: dict[str, list[str]] = defaultdict(list)
    for each in found:
        by_caller[each.caller].append(each.event_id)
    for caller, event_ids in by_caller.items():
        forget_ids(client, event_ids, caller)
    for name in {name for each in found for name in _counted(each)}:
        connection.delete(name)
    gone: Counter[str] = Counter()
    for generation_id in generations:
        gone["generations"] += int(connection.delete(keys.GENERATION + generation_id))
        connection.delete(keys.GENERATION_CALLER + generation_id)
    for each in waiting:
        gone["stream"] += int(connection.xdel(keys.FEEDBACK_STREAM, each.stream_id))
    return gone


def _counted(found: Found) -> Iterator[str]:
    """Yield the keys that count a person's signals."""
    if found.generation_id:
        yield keys.judged_key(found.generation_id, found.annotator_id, found.source, found.caller)
    if found.annotator_id:
        who, now = keys.hash_of(found.annotator_id, caller=found.caller), time.time()
        for window, seconds in (("minute", _MINUTE_S), ("day", _DAY_S)):
            for ago in range(3):
                yield f"{keys.FEEDBACK_COUNT}{window}:{int(now // seconds) - ago}:{who}"


def rewrite_files(client: redis.Redis) -> list[str]:
    """Have Redis write its append-only file and its snapshot anew, so that neither holds what was deleted.

    Returns:
        What somebody has to do by hand, because this user may not.

    Raises:
        RewriteFailed: If Redis tries and does not succeed.
        redis.RedisError: If Redis does not answer.
    """
    notes: list[str] = []
    for node in _nodes(client):
        try:
            persistence = node.info("persistence")
            if persistence.get("aof_enabled"):
                _rewrite(node, "aof_rewrite_in_progress", "aof_rewrite_scheduled", "aof_last_bgrewrite_status", _aof)
            if _takes_snapshots(node) or persistence.get("rdb_last_bgsave_time_sec", -1) >= 0:
                _rewrite(node, "rdb_bgsave_in_progress", "", "rdb_last_bgsave_status", _rdb)
            replicas = int(node.info("replication").get("connected_slaves", 0))
            if replicas:
                notes.append(f"{replicas} replicas of Redis keep files of their own: run BGREWRITEAOF and BGSAVE there")
        except redis.ResponseError as error:
            notes.append(f"Redis does not let the trainer rewrite its files ({error}): run BGREWRITEAOF and BGSAVE")
    return notes


def _nodes(client: Any) -> list[Any]:
    """Return a connection to each server of a cluster, or the only one."""
    if not hasattr(client, "get_nodes"):
        return [client]
    return [client.get_redis_connection(node) for node in client.get_nodes()]


def _takes_snapshots(node: Any) -> bool:
    """Whether Redis is set to. False for a user who may not know; then only snapshots since its start are known."""
    try:
        return bool(node.config_get("save").get("save"))
    except redis.ResponseError:
        return False


def _aof(node: Any) -> None:
    node.bgrewriteaof()


def _rdb(node: Any) -> None:
    node.bgsave()


def _rewrite(node: Any, running: str, scheduled: str, status: str, begin: Any) -> None:
    """Begin a rewrite after the one that runs, which may have begun before the deletions, and wait for its end."""
    deadline = time.monotonic() + _REWRITE_S

    def wait() -> None:
        while (about := node.info("persistence")).get(running) or (scheduled and about.get(scheduled)):
            if time.monotonic() > deadline:
                raise RewriteFailed(f"{running} for {_REWRITE_S:.0f} s")
            time.sleep(_POLL_S)

    wait()
    begin(node)
    wait()
    if (said := node.info("persistence").get(status)) != "ok":
        raise RewriteFailed(f"{status}: {said}")


def entries(client: redis.Redis, stream: str) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    """Yield the ids and the fields of a stream, oldest first, by pages. Raises redis.RedisError."""
    connection: Any = client
    first = "-"
    while page := connection.xrange(stream, first, "+", count=_PAGE):
        for raw_id, fields in page:
            yield raw_id.decode(), fields
        first = f"({page[-1][0].decode()}"
