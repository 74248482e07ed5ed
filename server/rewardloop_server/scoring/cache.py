"""cache: remembers the logits that a version gave, by the hash of the tokens that it read.

A version's entries are held through the version itself, so that no score outlives the model that gave it.
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
from rewardloop_server.scoring.batching import Version
from rewardloop_server.scoring.engine import Floats

# Bytes of an entry: a 16-byte key, an array of logits, and what Python and the ordered dictionary add.
_ENTRY_BYTES = 400


class ScoreCache:
    """Logits of the rows that each loaded version has scored. The least recently used are dropped first.

    Args:
        max_mib: About how many MiB each version's entries may take; 0 for no cache.
        lanes: The lanes that the cache serves.
        metrics: Where look-ups are counted.
    """

    def __init__(self, *, max_mib: int, lanes: Iterable[str], metrics: ServerMetrics) -> None:
        self._max_entries = max_mib * 2**20 // _ENTRY_BYTES
        self._versions: WeakKeyDictionary[Version, OrderedDict[bytes, Floats]] = WeakKeyDictionary()
        self._counts = {
            lane: tuple(metrics.cache_lookups_total.labels(lane=lane, outcome=o) for o in CACHE_OUTCOMES)
            for lane in (lanes if self._max_entries else ())
        }

    def serves(self, lane: str) -> bool:
        """Return whether groups of the lane are looked up."""
        return lane in self._counts

    def look_up(self, model: Version, rows: Sequence[Encoded], lane: str) -> tuple[list[bytes], list[Floats | None]]:
        """Return the rows' keys, and for each row its logits, (heads,), or None if they are not known."""
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

    def keep(self, model: Version, keys: Iterable[bytes], logits: Iterable[Floats]) -> None:
        """Remember the logits that the model gave for the rows with these keys."""
        entries = self._versions.setdefault(model, OrderedDict())
        for key, row in zip(keys, logits, strict=True):
            entries[key] = row.copy()  # a view would keep the array of the whole group in memory
        while len(entries) > self._max_entries:
            entries.popitem(last=False)

    def entries(self, model: Version) -> int:
        """Return how many rows of the model are remembered."""
        return len(self._versions.get(model, ()))


def _key(row: Encoded) -> bytes:
    key = blake2b(array("q", row.ids).tobytes(), digest_size=16)
    if row.token_type_ids is not None:
        key.update(array("q", row.token_type_ids).tobytes())
    return key.digest()
