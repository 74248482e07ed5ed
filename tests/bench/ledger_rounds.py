"""Measures CPU seconds and peak memory of reading a round with 100,000 and with 10,000,000 signals in the ledger.

    python tests/bench/ledger_rounds.py --work DIR [--rows 100000 10000000] [--new 256]

The segments are written directly, with short texts and a question to every ten signals, as large as a compaction makes
them. The questions of all but the newest 500,000 signals are written into the pools directly, too; ``--whole`` reads
them from the ledger instead, as a trainer without pools does. A first round takes the other signals in, which fills the
pools, and a second settles what was new in the first. Then a process of its own opens the ledger, sees that a round is
due, and reads the data set of the round with the newest ``--new`` signals. Kept files of an earlier run are used
again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from array import array
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa

from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import SCHEMA
from rewardloop_trainer.archive.segment_files import SegmentFiles
from rewardloop_trainer.data.pools.database import Database
from rewardloop_trainer.data.pools.near_duplicates import sketch_of
from rewardloop_trainer.data.pools.pools import PoolLimits, RoundRange
from rewardloop_trainer.data.pools.sides import FEW, QuestionSide, hash_of
from rewardloop_trainer.data.replay import POOLS, load_replay
from rewardloop_trainer.data.split import normalised, side_of
from rewardloop_trainer.rounds.publish import data_range

_SEGMENT = 200_000
_TAKEN_IN = 500_000
_START_MS = 1_700_000_000_000
_LIMITS = PoolLimits(judge_share=0.1)
_WORDS = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "islet", "jetty")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--new", type=int, default=256, help="signals of the round that is measured")
    parser.add_argument("--whole", action="store_true", help="take every signal in by reading it")
    parser.add_argument("--measure", choices=("take-in", "round"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.work, options.measure, options.rows[0], options.new)))
        return
    for rows in options.rows:
        directory = options.work / str(rows)
        write_ledger(directory / "ledger", rows)
        if not options.whole and not (directory / POOLS).exists():
            write_questions(directory / POOLS, rows - _TAKEN_IN)
        for what in ("take-in", "round"):
            if what == "take-in" and (directory / "taken-in").exists():
                continue
            done = subprocess.run(
                [
                    *(sys.executable, __file__, "--work", directory, "--rows", str(rows)),
                    *("--measure", what, "--new", str(options.new)),
                ],
                check=True,
                capture_output=True,
                text=True,
            )
            print(f"{rows:>10,} signals, {what}: {done.stdout.splitlines()[-1]}", flush=True)
            (directory / "taken-in").touch()
        print(
            f"{rows:>10,} signals: {size_of(directory / 'ledger'):,} bytes of ledger, "
            f"{size_of(directory / POOLS):,} bytes of pools",
            flush=True,
        )


def write_ledger(path: Path, rows: int) -> None:
    """Write segments of choices; the annotators, times and responses differ, as those of people do."""
    if (path / "written").exists():
        return
    path.mkdir(parents=True, exist_ok=True)
    files = SegmentFiles(path, None)
    for first in range(0, rows, _SEGMENT):
        numbers = range(first, min(first + _SEGMENT, rows))
        files.write(files.name(stream_id(numbers[0]), stream_id(numbers[-1])), table_of(numbers))
    (path / "written").touch()


def write_questions(path: Path, rows: int) -> None:
    """Write pools that know the questions of the first ``rows`` signals, as if they had been taken in."""
    if rows <= 0:
        return
    database = Database(path)
    insert = database.connection.executemany
    with database.step(nullcontext()):
        keys = []
        bands = array("q")
        for number in range(rows // 10):
            text = normalised(question(number))
            sketch = sketch_of(text)
            share = side_of(text, heldout_share=_LIMITS.heldout_share, judge_share=_LIMITS.judge_share)
            side = QuestionSide.BY_PAIR if number < FEW else QuestionSide[share.upper()]
            keys.append((hash_of(text), int(side), 1, sketch.low))
            bands.extend(sketch.bands)
        owners = np.repeat(np.array([key for key, *_ in keys], dtype=np.int64), len(sketch.bands))
        order = np.argsort(hashes := np.frombuffer(bands, dtype=np.int64))
        keys.sort()
        insert("INSERT INTO question VALUES (?, ?, ?, ?)", keys)
        for start in range(0, len(order), 1_000_000):
            part = order[start : start + 1_000_000]
            insert(
                "INSERT OR IGNORE INTO band VALUES (?, ?)",
                zip(hashes[part].tolist(), owners[part].tolist(), strict=True),
            )
        insert("INSERT OR REPLACE INTO fact VALUES ('groups', ?)", [(str(rows // 10),)])
        insert("INSERT INTO model VALUES ('reward', ?, '', '', ?, -1)", [(stream_id(rows - 1), 2**62)])
    database.close()


def table_of(numbers: range) -> pa.Table:
    count = len(numbers)
    columns = {
        "stream_id": [stream_id(i) for i in numbers],
        "event_id": [f"event-{i}" for i in numbers],
        "kind": ["choice"] * count,
        "prompt": [[{"role": "user", "content": question(i // 10)}] for i in numbers],
        "responses": [[f"an answer of kind {i % 97}", f"another answer, number {i}"] for i in numbers],
        "chosen": [i % 2 for i in numbers],
        "rejected": [1 - i % 2 for i in numbers],
        "annotator_id": [f"u-{i % 5_000}" for i in numbers],
        "source": ["human"] * count,
        "tags": [[]] * count,
        "arrival_time": [(_START_MS + i) * 1_000 for i in numbers],
    }
    return pa.table({f.name: pa.array(columns.get(f.name, [None] * count), f.type) for f in SCHEMA}, schema=SCHEMA)


def stream_id(number: int) -> str:
    return f"{_START_MS + number}-0"


def question(number: int) -> str:
    """Questions that share no more than people's do."""
    digits = f"{number:07}"
    return " ".join(f"{_WORDS[int(d)]}{place}{digits[place - 3 :]}" for place, d in enumerate(digits)) + "?"


def measured(directory: Path, what: str, rows: int, new: int) -> dict[str, float]:
    """Read a round in this process. Seconds are of its CPU time, and bytes are of its peak beyond the imports'."""
    before, idle, began = spent(), peak(), time.monotonic()
    ledger = Ledger(directory / "ledger", writable=False)
    opened = spent() - before
    first, cut = stream_id(rows - 2 * new - 1), stream_id(rows - new - 1)
    if what == "take-in":
        load_replay(ledger, directory / POOLS, RoundRange("reward", "", first, 1), _LIMITS)
        replay = load_replay(ledger, directory / POOLS, RoundRange("reward", first, cut, 2), _LIMITS)
    else:
        due = ledger.rows_after(cut)
        assert due == new, due
        until = str(ledger.last_stream_id)
        replay = load_replay(ledger, directory / POOLS, RoundRange("reward", cut, until, 3), _LIMITS)
        data_range(ledger, cut, until, 2)
    return {
        "cpu_s": round(spent() - before, 2),
        "open_cpu_s": round(opened, 2),
        "wall_s": round(time.monotonic() - began, 1),
        "imports_mib": round(idle),
        "peak_beyond_mib": round(peak() - idle),
        "new": len(replay.new),
        "replayed": len(replay.replayed),
        "heldout": len(replay.heldout),
    }


def spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak() -> float:
    """In MiB, of this program alone: ru_maxrss begins at what the parent had."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def size_of(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*")) if path.is_dir() else path.stat().st_size


if __name__ == "__main__":
    main()
