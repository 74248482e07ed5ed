"""Measures how much of the held-out signals is in training, without asking how they were split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rewardloop_trainer.data.pools.near_duplicates import SIMILARITY, shingles, similarity, sketch_of
from rewardloop_trainer.data.preferences import Record
from rewardloop_trainer.data.split import keys_of

# More and shorter bands than the split's own, so that what the split misses is found.
_BANDS, _ROWS, _SEED = 40, 5, 11


@dataclass(frozen=True, slots=True)
class Overlap:
    """Shares of held-out records, from 0 to 1.

    Attributes:
        root: Those of a conversation that begins with a question of training.
        last: Those whose last question is one of training.
        near: Those with a question that is a near-duplicate of one of training, or the same.
    """

    root: float = 0.0
    last: float = 0.0
    near: float = 0.0

    def figures(self) -> Mapping[str, float]:
        """Return the shares under their names in a manifest."""
        return {f"heldout_overlap_{name}": getattr(self, name) for name in ("root", "last", "near")}


def measure_overlap(train: Iterable[Record], heldout: Sequence[Record]) -> Overlap:
    """Compare the questions of held-out records with those of training records. A second turn is a question too."""
    if not heldout:
        return Overlap()
    held = [keys_of(record.prompt) for record in heldout]
    wanted = {text for keys in held for text in (keys.root, keys.last)}
    parts = {text: shingles(text) for text in wanted}
    by_band: dict[int, list[str]] = {}
    for text in wanted:
        for band in _bands(text):
            by_band.setdefault(band, []).append(text)
    trained: set[str] = set()
    near: set[str] = set()
    for record in train:
        keys = keys_of(record.prompt)
        for text in dict.fromkeys((keys.root, keys.last)):
            if text in trained:
                continue
            trained.add(text)
            found = {other for b in _bands(text) for other in by_band.get(b, ())}
            own = shingles(text)
            near |= {other for other in found - near if similarity(own, parts[other]) >= SIMILARITY}
    near |= wanted & trained
    count = len(held)
    return Overlap(
        sum(keys.root in trained for keys in held) / count,
        sum(keys.last in trained for keys in held) / count,
        sum(keys.root in near or keys.last in near for keys in held) / count,
    )


def _bands(text: str) -> tuple[int, ...]:
    return sketch_of(text, bands=_BANDS, rows=_ROWS, seed=_SEED).bands
