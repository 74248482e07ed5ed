"""Held-out pairs from a file, for an export that no round's data stands behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewardloop_data.rows import RowError, text_of, turns_of
from rewardloop_data.source_file import SourceFile, UnreadableFile
from rewardloop_trainer.data.preferences import Pair


class CorruptPairs(ValueError):
    """The file of pairs cannot be read."""


def read_pairs(path: Path) -> list[Pair]:
    """Read rows ``{"prompt", "chosen", "rejected"}`` from JSONL (plain or gzipped) or Parquet.

    A prompt is a text or a list of messages; ``tools`` beside it are its tools. Pairs of equal texts are left out.

    Raises:
        CorruptPairs: The file cannot be read, or a row has another form.
    """
    pairs: list[Pair] = []
    number = 0
    try:
        for line in SourceFile.of(path).lines():
            number = line.number
            row: Any = line.value()
            prompt = turns_of("prompt", row["prompt"], row.get("tools"))
            pair = Pair(prompt, text_of("chosen", row["chosen"]), text_of("rejected", row["rejected"]))
            if pair.chosen != pair.rejected:
                pairs.append(pair)
    except UnreadableFile as error:
        raise CorruptPairs(str(error)) from error
    except (RowError, KeyError, TypeError) as error:
        raise CorruptPairs(f"{path}, row {number}: {error}") from error
    return pairs
