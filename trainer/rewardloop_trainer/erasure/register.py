"""The register of erasures: in Redis, and in files beside the ledger, so that the loss of either loses no erasure.

<ledger>/erasures/keys.json        the keys of digests, by name
<ledger>/erasures/<id>.json        an erasure, the digests of the event_ids that it erased, and its first place in the
                                   ledger by aspect
<ledger>/erased.json               the ids of the erasures that were carried out on these segments

The files name nobody. If a copy of the folder ``erasures`` is put beside a restored ledger, the trainer erases again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import redis
import structlog

from rewardloop.formats import keys
from rewardloop.formats.erasing.erasures import ERASURE_KEYS, ERASURES, Erasure, Erasures, UnreadableErasure
from rewardloop_trainer.archive.segment_files import order
from rewardloop_trainer.archive.small_files import SmallFiles

log = structlog.get_logger()

_KEYS = f"{ERASURES}/{ERASURE_KEYS}"
_AT_ONCE = 5_000


class Register:
    """Every erasure of the deployment. `read` must be called first.

    Attributes:
        known: The erasures as they were read last.
    """

    def __init__(self, client: redis.Redis, files: SmallFiles) -> None:
        self._redis: Any = client  # redis-py's types are unions over every protocol version and decoding
        self._files = files
        self._events: dict[str, set[str]] = {}  # by erasure_id: digests in hex
        self._places: dict[str, dict[str, str]] = {}  # by erasure_id: the lowest stream id by aspect
        self.known = Erasures()

    def read(self) -> None:
        """Read Redis and the files, and give each what it lacks.

        Raises redis.RedisError, OSError, and UnreadableErasure for a file that is damaged: it must not be forgotten.
        """
        in_redis = {name.decode(): secret.decode() for name, secret in self._redis.hgetall(keys.ERASURE_KEYS).items()}
        in_file = _keys_in(self._files.read(_KEYS))
        erasures = {each.erasure_id: each for each in self._in_redis()}
        stored = self._stored()
        if not erasures and not stored:
            return
        secrets = {**in_redis, **in_file}
        if secrets != in_file:
            self._files.write(_KEYS, json.dumps(secrets).encode(), is_private=True)
        if missing := {name: secret for name, secret in secrets.items() if name not in in_redis}:
            self._redis.hset(keys.ERASURE_KEYS, mapping=missing)
        for each in stored.values():
            if each.erasure_id not in erasures:
                self._redis.hset(keys.ERASURES, each.erasure_id, each.to_json())
                self._redis.incr(keys.ERASURES_CHANGED)
                self._share(self._events[each.erasure_id])
        for each in erasures.values():
            if each.erasure_id not in stored:
                self._events.setdefault(each.erasure_id, set())
                self._write(each)
        everything = {**stored, **erasures}
        self.known = Erasures(
            {name: bytes.fromhex(secret) for name, secret in secrets.items()}, everything.values(), self.events
        )

    @property
    def events(self) -> frozenset[bytes]:
        """The digests of all event_ids that were erased."""
        return frozenset(bytes.fromhex(digest) for events in self._events.values() for digest in events)

    def add_events(self, erasure: Erasure, digests: Collection[bytes]) -> None:
        """Remember event_ids that an erasure erases, in the files and in Redis. Raises OSError, redis.RedisError."""
        known = self._events.setdefault(erasure.erasure_id, set())
        if new := {digest.hex() for digest in digests} - known:
            known |= new
            self._write(erasure)
        self._share(known)

    def add_places(self, erasure: Erasure, first_places: Mapping[str, str]) -> None:
        """Remember the lowest place of an erasure's signals in the ledger, by aspect. Raises OSError."""
        known = self._places.setdefault(erasure.erasure_id, {})
        lowest = {
            aspect: min((place for place in (known.get(aspect), first_places.get(aspect)) if place), key=order)
            for aspect in {*known, *first_places}
        }
        if lowest != known:
            self._places[erasure.erasure_id] = lowest
            self._write(erasure)

    def places(self, erasure: Erasure) -> Mapping[str, str]:
        """Return the lowest place of an erasure's signals in the ledger, by aspect."""
        return self._places.get(erasure.erasure_id, {})

    def count(self, erasure: Erasure) -> int:
        """Return how many event_ids an erasure has erased, in all of its runs."""
        return len(self._events.get(erasure.erasure_id, ()))

    def _write(self, erasure: Erasure) -> None:
        events, places = self._events.get(erasure.erasure_id, ()), self._places.get(erasure.erasure_id, {})
        content = {"erasure": asdict(erasure), "events": sorted(events), "first_places": places}
        self._files.write(f"{ERASURES}/{erasure.erasure_id}.json", json.dumps(content).encode(), is_private=True)

    def _share(self, digests: Collection[str]) -> None:
        ordered = sorted(digests)
        for start in range(0, len(ordered), _AT_ONCE):
            part = [bytes.fromhex(digest) for digest in ordered[start : start + _AT_ONCE]]
            self._redis.sadd(keys.ERASED_EVENTS, *part)

    def _in_redis(self) -> list[Erasure]:
        found = []
        for name, text in self._redis.hgetall(keys.ERASURES).items():
            try:
                found.append(Erasure.from_json(text))
            except UnreadableErasure as error:  # whoever wrote it is no server of this release
                log.error("an erasure in Redis cannot be read", erasure_id=name.decode(), reason=str(error))
        return found

    def _stored(self) -> dict[str, Erasure]:
        found = {}
        for name in self._files.names(ERASURES):
            if name == _KEYS:
                continue
            data = self._files.read(name)
            try:
                raw: Mapping[str, Any] = json.loads(data or b"")
                erasure = Erasure.from_json(json.dumps(raw["erasure"]))
                self._events[erasure.erasure_id] = {str(bytes.fromhex(each).hex()) for each in raw["events"]}
                self._places[erasure.erasure_id] = {
                    str(aspect): str(place) for aspect, place in raw["first_places"].items() if order(place)
                }
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UnreadableErasure(f"{name} in the ledger: {error}") from error
            found[erasure.erasure_id] = erasure
        return found


def _keys_in(data: bytes | None) -> dict[str, str]:
    """Return the keys of the file. Raises UnreadableErasure."""
    try:
        raw = json.loads(data) if data else {}
        return {str(name): bytes.fromhex(secret).hex() for name, secret in raw.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UnreadableErasure(f"{_KEYS} in the ledger: {error}") from error
