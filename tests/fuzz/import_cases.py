"""`rewardloop feedback import` on damaged files: rows are recorded, or refused with a reason, or the file is.

What is recorded must be what the server takes, and the same file again must be known again.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import mutate
import pyarrow
import pyarrow.parquet

from rewardloop.v1 import feedback_pb2
from rewardloop_cli.feedback.imports import SignalPlan
from rewardloop_cli.feedback.sending import send_file
from rewardloop_client import InvalidRequest, RecordResult, RewardloopError
from rewardloop_data.judgements import Labels
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.side_files import Progress, SideFiles
from rewardloop_data.source_file import SourceFile, UnreadableFile
from rewardloop_data.survey import survey
from rewardloop_server.calls import errors
from rewardloop_server.calls.validate import Limits, validate_event

# What is doubtful about these rows is settled, so that most files are read.
_CHOICES = Choices(ignored=frozenset("*"), indices="zero-based", rankings="order")
_TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is it?"}]
ROWS: tuple[mutate.Json, ...] = (
    {"prompt": "What is it?", "chosen": "A pen.", "rejected": "No idea.", "annotator": "ann"},
    {
        "prompt": _TURNS,
        "chosen": [{"role": "assistant", "content": "A pen."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    },
    {
        "chosen": [*_TURNS, {"role": "assistant", "content": "Yes."}],
        "rejected": [*_TURNS, {"role": "assistant", "content": "No."}],
    },
    {"prompt": "q", "responses": ["a", "b", "c"], "chosen": 1},
    {"prompt": "q", "responses": ["a", "b", "c"], "ranking": [2, 0, 1]},
    {"prompt": "q", "responses": ["a", "b"], "annotations": [{"annotator": 7, "choice": 0}, {"choice": "tie"}]},
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": "q", "response": "a", "up": 3, "down": 1},
)


class ImportCases:
    """Cases in ``work``. `run` gives the outcome; what it raises is a fault."""

    def __init__(self, work: Path) -> None:
        self._work = work

    def run(self, chance: Random) -> str:
        make = chance.choice(_FILES)
        name, data = make(chance)
        path = self._work / name
        path.write_bytes(data)
        server = _Server()
        first = _import(path, server)
        again = _import(path, server)
        if first.recorded != len(server.seen) or again.recorded:
            raise AssertionError(f"{first.recorded} signals recorded, then {again.recorded}; {len(server.seen)} known")
        return first.outcome

    def check(self) -> None:
        """Nothing goes on between cases."""


class _Server:
    """Takes what the real one would, by its own rules; knows an event_id again."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def record(self, events: Sequence[feedback_pb2.FeedbackEvent]) -> list[RecordResult | RewardloopError]:
        return [self._record(feedback_pb2.FeedbackEvent.FromString(event.SerializeToString())) for event in events]

    def stop(self) -> None:
        pass

    def _record(self, event: feedback_pb2.FeedbackEvent) -> RecordResult | RewardloopError:
        try:
            validate_event(event, Limits())
        except errors.InvalidRequest as error:
            return InvalidRequest(error.message)
        duplicate = event.event_id in self.seen
        self.seen.add(event.event_id)
        return RecordResult(stream_id="1-0", duplicate=duplicate)


class _Imported:
    def __init__(self, outcome: str, recorded: int) -> None:
        self.outcome, self.recorded = outcome, recorded


def _import(path: Path, server: _Server) -> _Imported:
    known = len(server.seen)
    last = Progress("", 0, "")

    def settled(_: object, progress: Progress, __: object) -> None:
        nonlocal last
        last = progress

    try:
        source = SourceFile.of(path)
        side_files = SideFiles(source, path.parent)
        fresh = Progress(source.head_sha256, source.size, "server")
        progress = side_files.begin(fresh, restart=True)
        plan = SignalPlan(survey(source.shown, source.lines(), _CHOICES).reading, Labels())
        send_file(source, server, side_files, plan, progress, settled)  # type: ignore[arg-type]  # our Delivery
        outcome = "all rows recorded" if not last.rejected else "some rows refused"
    except UnreadableFile:
        outcome = "file refused" if not last.rows else "file refused midway"
    rejected = path.with_name(f"{path.name}.rejected.jsonl")
    kept = rejected.read_bytes().splitlines() if rejected.exists() else []
    if len(kept) != last.rejected or not all(json.loads(line)["reason"] for line in kept):
        raise AssertionError(f"{last.rejected} rows refused, {len(kept)} kept aside")
    for left in path.parent.glob(f"{path.name}.*"):
        left.unlink()
    return _Imported(outcome, len(server.seen) - known)


def _jsonl(chance: Random) -> bytes:
    rows = [chance.choice(ROWS) for _ in range(chance.randint(1, 12))]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _odd_rows(chance: Random) -> tuple[str, bytes]:
    rows = [
        mutate.other_json(chance.choice(ROWS), chance) if chance.random() < 0.9 else mutate.any_json(chance)
        for _ in range(chance.randint(1, 12))
    ]
    return "rows.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _damaged_jsonl(chance: Random) -> tuple[str, bytes]:
    return "rows.jsonl", mutate.mutated(_jsonl(chance), chance, texts=True)


def _damaged_gzip(chance: Random) -> tuple[str, bytes]:
    return chance.choice(("rows.jsonl.gz", "rows.jsonl")), mutate.mutated(gzip.compress(_jsonl(chance)), chance)


def _damaged_inside_gzip(chance: Random) -> tuple[str, bytes]:
    return "rows.jsonl.gz", gzip.compress(mutate.mutated(_jsonl(chance), chance, texts=True))


def _parquet(rows: Sequence[mutate.Json], chance: Random) -> bytes:
    file = io.BytesIO()
    table = pyarrow.Table.from_pylist(list(rows))
    pyarrow.parquet.write_table(table, file, compression=chance.choice(("none", "snappy", "gzip", "zstd")))
    return file.getvalue()


def _damaged_parquet(chance: Random) -> tuple[str, bytes]:
    row = chance.choice([row for row in ROWS if "annotations" not in row])  # whose choices have no one type
    return "rows.parquet", mutate.mutated(_parquet([row] * chance.randint(1, 20), chance), chance)


def _odd_parquet(chance: Random) -> tuple[str, bytes]:
    """Sound Parquet of values that are no JSON, or no signals."""
    odd = (b"\xff", 1.5, None, 2**40, [1], [["a"]], {"a": b"b"}, "text", True)
    columns = {name: [chance.choice(odd)] * 3 for name in ("prompt", "chosen", "rejected", "responses", "ranking")}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return "rows.parquet", file.getvalue()


_FILES: tuple[Callable[[Random], tuple[str, bytes]], ...] = (
    *(_odd_rows, _odd_rows, _damaged_jsonl, _damaged_gzip, _damaged_inside_gzip, _damaged_parquet, _odd_parquet),
)
