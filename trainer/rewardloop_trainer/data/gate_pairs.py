"""Held-out pairs from a file, for an export that no round's data stands behind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Pair


class CorruptPairs(ValueError):
    """The file of pairs cannot be read."""


def read_pairs(path: Path) -> list[Pair]:
    """JSONL rows ``{"prompt", "chosen", "rejected"}``, gzipped where the name ends in .gz; a prompt is a text or a list
    of ``{"role", "content"}``. Pairs of equal texts are left out. Raises `CorruptPairs`."""
    pairs: list[Pair] = []
    reached = 1
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                given = row["prompt"]
                turns = [("user", given)] if isinstance(given, str) else [(t["role"], t["content"]) for t in given]
                pair = Pair(tuple(Turn(str(r), str(c)) for r, c in turns), str(row["chosen"]), str(row["rejected"]))
                if pair.chosen != pair.rejected:
                    pairs.append(pair)
                reached += 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptPairs(f"{path}, row {reached}: {error}") from error
    return pairs
