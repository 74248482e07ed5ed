"""Pairs of the running deployment: the log of generations in Redis, and people's signals in the ledger."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import redis
import structlog
from google.protobuf.message import DecodeError

from rewardloop.formats import keys
from rewardloop.formats.text import turns
from rewardloop.v1 import policy_pb2
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.data.preferences import source_of
from rewardloop_trainer.judging.judge import Duel
from rewardloop_trainer.judging.pairs.candidates import Candidate, add_judged

log = structlog.get_logger()

_SCANNED = 500
_IDS_A_PAIR = 8  # ids of generations that are remembered for each pair that is kept


class LivePairs:
    """What can be judged now. `refresh` reads what is new."""

    def __init__(
        self,
        ledger: Ledger | None,
        client: redis.Redis | None,
        *,
        newest: int,
        min_age_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the places to read.

        Args:
            ledger: People's signals; None: without them.
            client: Redis with the log of generations; None: without it.
            newest: Pairs of each kind that are kept; the oldest are forgotten.
            min_age_s: Age of a generation, in seconds, from which on it is not left to people any more.
            clock: Gives the time in Unix seconds.
        """
        self._ledger, self._redis = ledger, client
        self._newest, self._min_age_s, self._clock = newest, min_age_s, clock
        self._after: str | None = None
        self._asked: dict[str, None] = {}  # generations that people judged
        self._seen: dict[str, None] = {}
        self.judged_by_people: dict[str, Candidate] = {}
        self.others: dict[str, Candidate] = {}

    def refresh(self) -> None:
        """Read new signals and generations.

        Raises:
            CorruptSegment: If the ledger cannot be read.
            redis.RedisError: If Redis does not answer.
        """
        if self._ledger is not None:
            self._read_ledger(self._ledger)
        if self._redis is not None:
            for generation in self._new_generations(self._redis):
                if (candidate := _pair_of(generation)) is not None:
                    self.others[candidate.key] = candidate
        for key in [key for key, each in self.others.items() if each.generation_id in self._asked]:
            del self.others[key]  # people were faster
        for pairs in (self.judged_by_people, self.others):
            _forget(pairs, self._newest)
        for ids in (self._asked, self._seen):
            _forget(ids, _IDS_A_PAIR * self._newest)

    def _read_ledger(self, ledger: Ledger) -> None:
        ledger.refresh()
        if self._after is None and (last := ledger.last_stream_id):
            self._after = ledger.newest_from(4 * self._newest, last) or None
        for row in ledger.scan(self._after):
            self._after = row.stream_id
            if source_of(row.event) == "human":
                if row.event.generation_id:
                    self._asked[row.event.generation_id] = None
                add_judged(self.judged_by_people, row.event)

    def _new_generations(self, client: redis.Redis) -> Iterator[policy_pb2.Generation]:
        now = self._clock()
        fresh: list[bytes] = []

        def read() -> Iterator[policy_pb2.Generation]:
            for key, data in zip(fresh, cast(list[bytes | None], client.mget(fresh)), strict=True):
                generation = _parsed(data)
                if generation is None:  # expired meanwhile, or no generation
                    self._seen[_name(key)] = None
                    continue
                if generation.create_time.ToSeconds() + self._min_age_s > now:
                    continue  # people may judge it still
                self._seen[_name(key)] = None
                yield generation
            fresh.clear()

        for key in client.scan_iter(match=keys.GENERATION + "*", count=_SCANNED):
            if _name(key) not in self._seen and _name(key) not in self._asked:
                fresh.append(key)
            if len(fresh) == _SCANNED:
                yield from read()
        if fresh:
            yield from read()


def _forget(kept: dict[str, Any], most: int) -> None:
    """Remove the oldest beyond so many."""
    while len(kept) > most:
        del kept[next(iter(kept))]


def _name(key: bytes) -> str:
    return key.decode("utf-8", "replace").removeprefix(keys.GENERATION)


def _parsed(data: bytes | None) -> policy_pb2.Generation | None:
    try:
        return None if data is None else policy_pb2.Generation.FromString(data)
    except DecodeError as error:
        log.warning("a generation of the log cannot be read", error=str(error))
        return None


def _pair_of(generation: policy_pb2.Generation) -> Candidate | None:
    """Return a pair of a generation's answers that differ, chosen by a digest of its id; None without one."""
    said = [(i, each) for i, each in enumerate(generation.candidates) if each.text.strip()]
    pairs = [(a, b) for n, a in enumerate(said) for b in said[n + 1 :] if a[1].text != b[1].text]
    if not pairs:
        return None
    digest = hashlib.sha256(generation.generation_id.encode()).digest()
    (i, first), (j, second) = pairs[int.from_bytes(digest[:8], "big") % len(pairs)]
    has_scores = first.HasField("score") and second.HasField("score")
    return Candidate(
        Duel(turns(generation.prompt), first.text, second.text),
        (),
        generation.generation_id,
        i,
        j,
        (first.score, second.score) if has_scores else None,
        (first.uncertainty, second.uncertainty) if has_scores else None,
    )
