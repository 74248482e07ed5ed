"""Near-duplicates of a text, by MinHash in bands.

Two texts are near-duplicates if the Jaccard similarity of their shingles is at least `SIMILARITY`. Shingles are words
and pairs of neighbouring words; scripts without spaces count character by character. Texts of similarity J have a band
in common with probability 1 - (1 - J^10)^20: 0.98 at 0.85, 0.9998 at 0.9, and 0.2 at 0.65. Those that have one are
compared by their whole signatures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from rensa import RMinHash

SIMILARITY = 0.85
_BANDS, _ROWS = 20, 10
_SEED = 7
# 2.5 standard deviations of the estimate below `SIMILARITY`: 1 near-duplicate in 160 is missed at the very threshold.
_LEAST_EQUAL = 0.79
# Thai, Lao, Burmese, Khmer, kana and the ideographs of Chinese, Japanese and Korean are written without spaces.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def shingles(text: str) -> frozenset[str]:
    """Return the shingles of a normalised text; the text itself if it has no word."""
    words = _WORD.findall(text)
    return frozenset((*words, *(f"{one} {two}" for one, two in pairwise(words)))) or frozenset((text,))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets of shingles, which are not empty."""
    return len(one & other) / len(one | other)


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is kept of a text to find its near-duplicates.

    Attributes:
        bands: A signed 64-bit number for each band of the MinHash signature. Near-duplicates have some in common.
        low: The lowest byte of each of the signature's numbers, by which `is_near` estimates similarity.
    """

    bands: tuple[int, ...]
    low: bytes

    def is_near(self, low: bytes) -> bool:
        """Whether the other text is a near-duplicate by its ``low``: up to an error of 0.03, one standard deviation."""
        equal = np.count_nonzero(np.frombuffer(self.low, np.uint8) == np.frombuffer(low, np.uint8))
        return bool(equal >= _LEAST_EQUAL * len(low))


def sketch_of(text: str, *, bands: int = _BANDS, rows: int = _ROWS, seed: int = _SEED) -> Sketch:
    """Return the sketch of a normalised text."""
    sketch = RMinHash(num_perm=bands * rows, seed=seed)
    sketch.update(sorted(shingles(text)))
    signature = np.asarray(sketch.digest(), dtype="<u4")
    by_band = signature.reshape(bands, rows)
    numbers = tuple(short_hash(number.to_bytes(1, "little") + row.tobytes()) for number, row in enumerate(by_band))
    return Sketch(numbers, signature.astype(np.uint8).tobytes())


def short_hash(data: bytes) -> int:
    """Return a signed 64-bit hash, as SQLite stores it in the fewest bytes."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)


@cache
def method() -> str:
    """Return a text that changes whenever bands are computed in another way, by this code or by its library."""
    return str(sketch_of("the quick brown fox jumps over the lazy dog").bands[:3])
