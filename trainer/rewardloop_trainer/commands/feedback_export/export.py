"""Reads the ledger, chooses signals, and writes each as a row. One row group of the ledger is in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rewardloop.formats.signals import aspect_of
from rewardloop.v1 import feedback_pb2
from rewardloop_data.judgements import judgement_of
from rewardloop_data.target_file import ColumnKind, UnwritableFile, UnwritableRow, Writer, container_of, writing
from rewardloop_data.written_rows import NoPlace, about, shaped
from rewardloop_trainer.archive.ledger import Ledger, ledger_to_read
from rewardloop_trainer.commands.feedback_export.settings import FeedbackExportSettings, moment

_EXAMPLES = 3
_WIDTH = 160
_ABOUT: Mapping[str, ColumnKind] = {
    **dict.fromkeys(("annotator", "aspect", "judgement_id", "source", "time"), "text"),
    "tags": "json",
}
# The columns of the rows of one kind, for tables.
_OWN: Mapping[str, Mapping[str, ColumnKind]] = {
    "choice": {"chosen": "text", "rejected": "text", "strength": "number"},
    "tie": {"response_a": "text", "response_b": "text", "winner": "text"},
    "ranking": {"responses": "texts", "order": "integers"},
    "thumb": {"completion": "text", "label": "flag"},
    "rating": {"completion": "text", "rating": "number", "minimum": "number", "maximum": "number"},
    "edit": {"response": "text", "edited_text": "text"},
}


@dataclass(slots=True)
class Summary:
    """What was written.

    Attributes:
        written: Rows.
        kinds: Signals that were written, by kind.
        left_out: Signals that were asked for and have no row, by the reason.
        examples: The first rows.
    """

    written: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def lines(self, out: str, *, dry_run: bool) -> Iterator[str]:
        """Yield the summary in lines."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common()) or "no signal"
        yield f"{out}: {self.written} rows {'would be ' if dry_run else ''}written: {kinds}"
        for reason, count in self.left_out.most_common():
            yield f"{out}: {count} left out: {reason}"
        for number, row in enumerate(self.examples if dry_run else (), start=1):
            shown = repr(row)
            yield f"  example {number}: {shown if len(shown) <= _WIDTH else shown[:_WIDTH] + '...'}"


def export(settings: FeedbackExportSettings) -> Summary:
    """Write the signals that the settings ask for.

    Raises:
        NoLedger: There is no ledger, or no signal in it.
        UnwritableFile: The file cannot be written.
        CorruptSegment: A segment of the ledger cannot be read.
    """
    container, _ = container_of(settings.out)
    if settings.shape == "rows" and container in ("csv", "parquet") and len(settings.kind) != 1:
        raise UnwritableFile(f"{settings.out}: a table of own rows holds one kind of signal: name it with --kind")
    ledger = ledger_to_read(settings.archive)
    summary = Summary()
    target = (
        nullcontext()
        if settings.dry_run
        else writing(settings.out, _columns(settings), replace=settings.replace, csv_safe=settings.csv_safe)
    )
    with target as writer:
        for event in _chosen(ledger, settings):
            _add(event, settings, summary, writer)
    return summary


def _add(
    event: feedback_pb2.FeedbackEvent, settings: FeedbackExportSettings, summary: Summary, writer: Writer | None
) -> None:
    try:
        row = _row(event, settings)
        if writer is not None:
            writer.write(row)
    except (NoPlace, UnwritableRow) as error:
        summary.left_out[str(error)] += 1
        return
    summary.written += 1
    summary.kinds[str(event.WhichOneof("signal"))] += 1
    if len(summary.examples) < _EXAMPLES:
        summary.examples.append(row)


def _chosen(ledger: Ledger, settings: FeedbackExportSettings) -> Iterator[feedback_pb2.FeedbackEvent]:
    since = moment(settings.since) if settings.since else float("-inf")
    until = moment(settings.until) if settings.until else float("inf")
    tags = dict(pair.split("=", 1) for pair in settings.tag)
    for row in ledger.scan():
        event = row.event
        if (
            since <= event.arrival_time.ToNanoseconds() / 1e9 < until
            and (not settings.source or _source(event) in settings.source)
            and (not settings.kind or event.WhichOneof("signal") in settings.kind)
            and (not settings.aspect or aspect_of(event) in settings.aspect)
            and all(event.tags.get(key) == value for key, value in tags.items())
        ):
            yield event


def _row(event: feedback_pb2.FeedbackEvent, settings: FeedbackExportSettings) -> dict[str, Any]:
    judgement = judgement_of(event)
    row = shaped(judgement, settings.shape, settings.form)
    if settings.shape != "rows" and not settings.about:
        return row
    arrived = datetime.fromtimestamp(event.arrival_time.ToNanoseconds() / 1e9, UTC)
    more: dict[str, Any] = {"source": _source(event), "time": arrived.isoformat(timespec="milliseconds")}
    return {**row, **about(judgement), **more, **({"tags": dict(sorted(event.tags.items()))} if event.tags else {})}


def _columns(settings: FeedbackExportSettings) -> Mapping[str, ColumnKind]:
    said: ColumnKind = "messages" if settings.form == "conversational" else "text"
    prompt: dict[str, ColumnKind] = {"prompt": "messages", "tools": "json"}
    match settings.shape:
        case "rows":
            return {**prompt, **(_OWN[settings.kind[0]] if settings.kind else {}), **_ABOUT}
        case "rankings":
            columns: dict[str, ColumnKind] = {**prompt, **_OWN["ranking"]}
        case "trl-preference":
            columns = {**prompt, "prompt": said, "chosen": said, "rejected": said}
        case "trl-kto":
            columns = {**prompt, "prompt": said, "completion": said, "label": "flag"}
        case "sft":
            columns = {**prompt, "prompt": said, "completion": said}
    if settings.form == "plain" and settings.shape != "rankings":
        del columns["tools"]
    return {**columns, **(_ABOUT if settings.about else {})}


def _source(event: feedback_pb2.FeedbackEvent) -> str:
    return feedback_pb2.Source.Name(event.source or feedback_pb2.SOURCE_HUMAN).removeprefix("SOURCE_").lower()
