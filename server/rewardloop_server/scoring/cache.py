"""cache: logits that a version has already given, by the hash of what it read.

A version's entries are held through the version itself and go with it: a score cannot outlive the model that gave it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from weakref import WeakKeyDictionary

from rewardloop.formats.text import Encoded
from rewardloop_server.calls.vocabulary import CACHE_OUTCOMES
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import Floats, RewardModel

# The 16-byte key, the logits' array, and what Python and the ordered dictionary add to each.
_ENTRY_BYTES = 400


class ScoreCache:
    """At most ``max_mib`` MiB for each loaded version, the least recently used first to go, for the named lanes."""

    def __init__(self, *, max_mib: int, lanes: Iterable[str], metrics: ServerMetrics) -> None:
        self._max_entries = max_mib * 2**20 // _ENTRY_BYTES
        self._versions: WeakKeyDictionary[RewardModel, OrderedDict[bytes, Floats]] = WeakKeyDictionary()
        self._counts = {
            lane: tuple(metrics.cache_lookups_total.labels(lane=lane, outcome=o) for o in CACHE_OUTCOMES)
            for lane in (lanes if self._max_entries else ())
        }

    def serves(self, lane: str) -> bool:
        return lane in self._counts

    def look_up(
        self, model: RewardModel, rows: Sequence[Encoded], lane: str
    ) -> tuple[list[bytes], list[Floats | None]]:
        """The rows' keys, and their logits ``(heads,)`` where known."""
        entries = self._versions.get(model, OrderedDict())
        keys = [_key(row) for row in rows]
        found = [entries.get(key) for key in keys]
        for key, logits in zip(keys, found, strict=True):
            if logits is not None:
                entries.move_to_end(key)
        hits, misses = self._counts[lane]
        missed = sum(logits is None for logits in found)
        hits.inc(len(found) - missed)
        misses.inc(missed)
        return keys, found

    def keep(self, model: RewardModel, keys: Iterable[bytes], logits: Iterable[Floats]) -> None:
        """Remember what the model gave for the rows with these keys."""
        entries = self._versions.setdefault(model, OrderedDict())
        for key, row in zip(keys, logits, strict=True):
            entries[key] = row.copy()  # a view would keep the whole group's array
        while len(entries) > self._max_entries:
            entries.popitem(last=False)

    def entries(self, model: RewardModel) -> int:
        return len(self._versions.get(model, ()))


def _key(row: Encoded) -> bytes:
    key = blake2b(array("q", row.ids).tobytes(), digest_size=16)
    if row.token_type_ids is not None:
        key.update(array("q", row.token_type_ids).tobytes())
    return key.digest()
