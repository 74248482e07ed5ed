"""How varied texts are and how much they repeat themselves, in any script."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_RUN = 4
# A longer run without a space is no word: its characters count one by one.
_LONGEST_WORD = 24
# Scripts that are written without spaces, as ranges of code points.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


def words(text: str) -> list[str]:
    """Split a text into words; what is written without spaces is split into characters."""
    found: list[str] = []
    for run in text.split():
        is_unspaced = any(low <= ord(character) <= high for character in run for low, high in _UNSPACED)
        if is_unspaced or len(run) > _LONGEST_WORD:
            found += run
        else:
            found.append(run)
    return found


def distinct_2(texts: Sequence[str]) -> float:
    """Return the share of distinct pairs among all pairs of neighbouring words (Li et al. 2016); 0 without a pair."""
    pairs = [pair for text in texts for pair in pairwise(words(text))]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def repeated_4(texts: Sequence[str]) -> float:
    """Return the share of the runs of four words that occur earlier in the same text; 0 without such a run."""
    runs, repeated = 0, 0
    for text in texts:
        split = words(text)
        said = list(zip(*(split[i:] for i in range(_RUN)), strict=False))
        runs += len(said)
        repeated += len(said) - len(set(said))
    return repeated / runs if runs else 0.0
