"""Converts signals to the ledger's Parquet columns and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from rewardloop.formats.text import turns
from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2

_TIME = pa.timestamp("us", tz="UTC")

SCHEMA = pa.schema(
    [
        pa.field("stream_id", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), nullable=False),
        pa.field("responses", pa.list_(pa.string()), nullable=False),
        # The kind decides which of the following columns are set. Indices count the responses from 0.
        pa.field("chosen", pa.int32()),
        pa.field("rejected", pa.int32()),
        pa.field("strength", pa.float64()),
        pa.field("order", pa.list_(pa.int32())),
        pa.field("response", pa.int32()),
        pa.field("up", pa.bool_()),
        pa.field("value", pa.float64()),
        pa.field("minimum", pa.float64()),
        pa.field("maximum", pa.float64()),
        pa.field("edited_text", pa.string()),
        pa.field("first", pa.int32()),
        pa.field("second", pa.int32()),
        pa.field("annotator_id", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("tags", pa.map_(pa.string(), pa.string())),
        pa.field("generation_id", pa.string()),
        pa.field("policy_version", pa.string()),
        pa.field("policy_digest", pa.string()),
        pa.field("response_versions", pa.list_(pa.string())),
        pa.field("event_time", _TIME),
        pa.field("arrival_time", _TIME, nullable=False),
        pa.field("display_order", pa.list_(pa.int32())),
        # How the responses of a generation came to be shown. The columns have the names of the message's fields.
        pa.field("selection", pa.string()),
        pa.field("sampled", pa.int32()),
        pa.field("random_share", pa.float64()),
        pa.field("is_random", pa.bool_()),
        pa.field("set_probability", pa.float64()),
        pa.field("reward_version", pa.string()),
        pa.field("show_probabilities", pa.list_(pa.float64())),
        pa.field("temperature", pa.float64()),
        pa.field("top_p", pa.float64()),
        pa.field("log_probabilities", pa.list_(pa.float64())),
        pa.field("token_counts", pa.list_(pa.int32())),
        pa.field("scores", pa.list_(pa.float64())),
    ]
)

# The columns of each kind of signal have the names of its message's fields.
SIGNAL_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "choice": ("chosen", "rejected", "strength"),
    "ranking": ("order",),
    "thumb": ("response", "up"),
    "rating": ("response", "value", "minimum", "maximum"),
    "edit": ("response", "edited_text"),
    "tie": ("first", "second"),
}
_OPTIONAL = frozenset({"strength"})

_SHOWN_NUMBERS = ("temperature", "top_p")
_SHOWN_LISTS = ("show_probabilities", "log_probabilities", "token_counts", "scores")
_CHOSEN_NUMBERS = ("sampled", "random_share", "is_random", "set_probability")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One signal as the stream delivered it.

    Attributes:
        stream_id: Its position in the feedback stream.
        event: The signal; its ``arrival_time`` is always set.
    """

    stream_id: str
    event: feedback_pb2.FeedbackEvent


def to_table(rows: Sequence[Recorded]) -> pa.Table:
    """Return a table in `SCHEMA` with the rows in their order."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in rows:
        values = _values(row)
        for name, column in columns.items():
            column.append(values.get(name))
    return pa.table(columns, schema=SCHEMA)


def whole(table: pa.Table) -> pa.Table:
    """Bring a segment's table into `SCHEMA`. A column that did not exist when it was written becomes null.

    Raises:
        ValueError: If a column that must not be null is missing.
    """
    for field in SCHEMA:
        if field.name not in table.column_names and field.nullable:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.replace_schema_metadata().select(SCHEMA.names).cast(SCHEMA)


def from_table(table: pa.Table) -> Iterator[Recorded]:
    """Yield the rows of a table in `SCHEMA`, in its order."""
    for batch in table.to_batches():
        columns = {name: _python(batch.column(name)) for name in SCHEMA.names}
        for i, kind in enumerate(columns["kind"]):
            yield Recorded(columns["stream_id"][i], _event(columns, kind, i))


def _values(row: Recorded) -> dict[str, Any]:
    event = row.event
    kind = str(event.WhichOneof("signal"))
    signal = getattr(event, kind)
    values: dict[str, Any] = {
        "stream_id": row.stream_id,
        "event_id": event.event_id,
        "kind": kind,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in turns(event.prompt)],
        "responses": list(event.responses),
        "annotator_id": event.annotator_id or None,
        "source": feedback_pb2.Source.Name(event.source or feedback_pb2.SOURCE_HUMAN).removeprefix("SOURCE_").lower(),
        "tags": sorted(event.tags.items()),
        "generation_id": event.generation_id or None,
        "policy_version": event.policy_version.version or None,
        "policy_digest": event.policy_version.digest or None,
        "response_versions": list(event.response_versions) or None,
        "display_order": list(event.display_order) or None,
        "event_time": event.event_time.ToMicroseconds() if event.HasField("event_time") else None,
        "arrival_time": event.arrival_time.ToMicroseconds(),
    }
    for name in SIGNAL_COLUMNS[kind]:
        value = getattr(signal, name)
        is_absent = name in _OPTIONAL and not signal.HasField(name)
        values[name] = None if is_absent else list(value) if name == "order" else value
    if event.HasField("shown"):
        values |= _shown_values(event.shown)
    return values


def _shown_values(shown: feedback_pb2.Shown) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(shown, name) for name in _SHOWN_NUMBERS}
    values |= {name: list(getattr(shown, name)) or None for name in _SHOWN_LISTS}
    if shown.HasField("chosen"):
        chosen = shown.chosen
        values |= {name: getattr(chosen, name) for name in _CHOSEN_NUMBERS}
        values["selection"] = policy_pb2.Selection.Name(chosen.selection).removeprefix("SELECTION_").lower()
        values["reward_version"] = chosen.reward_version.version or None
    return values


def _event(columns: Mapping[str, Sequence[Any]], kind: str, i: int) -> feedback_pb2.FeedbackEvent:
    event = feedback_pb2.FeedbackEvent(
        event_id=columns["event_id"][i],
        generation_id=columns["generation_id"][i],
        prompt=_prompt(columns["prompt"][i]),
        responses=columns["responses"][i],
        annotator_id=columns["annotator_id"][i],
        source=f"SOURCE_{columns['source'][i].upper()}",
        tags=dict(columns["tags"][i] or ()),
    )
    signal = getattr(event, kind)
    signal.SetInParent()  # a message whose fields are all zero is still the one that is set
    for name in SIGNAL_COLUMNS[kind]:
        value = columns[name][i]
        if name == "order":
            signal.order.extend(value)
        elif value is not None:
            setattr(signal, name, value)
    event.arrival_time.FromMicroseconds(columns["arrival_time"][i])
    if columns["event_time"][i] is not None:
        event.event_time.FromMicroseconds(columns["event_time"][i])
    if columns["policy_version"][i] or columns["policy_digest"][i]:
        event.policy_version.version = columns["policy_version"][i] or ""
        event.policy_version.digest = columns["policy_digest"][i] or ""
    event.response_versions.extend(columns["response_versions"][i] or ())
    event.display_order.extend(columns["display_order"][i] or ())
    if columns["temperature"][i] is not None:
        _set_shown(event.shown, columns, i)
    return event


def _set_shown(shown: feedback_pb2.Shown, columns: Mapping[str, Sequence[Any]], i: int) -> None:
    for name in _SHOWN_NUMBERS:
        setattr(shown, name, columns[name][i])
    for name in _SHOWN_LISTS:
        getattr(shown, name).extend(columns[name][i] or ())
    if columns["selection"][i] is not None:
        shown.chosen.MergeFrom(policy_pb2.Chosen(selection=f"SELECTION_{columns['selection'][i].upper()}"))
        for name in _CHOSEN_NUMBERS:
            setattr(shown.chosen, name, columns[name][i])
        shown.chosen.reward_version.version = columns["reward_version"][i] or ""


def _prompt(said: Iterable[tuple[str, str]]) -> common_pb2.Prompt:
    said = list(said)
    if len(said) == 1 and said[0][0] == "user":
        return common_pb2.Prompt(text=said[0][1])  # a text prompt is one user turn, by the contract
    messages = [common_pb2.Message(role=role, content=content) for role, content in said]
    return common_pb2.Prompt(conversation=common_pb2.Conversation(messages=messages))


def _python(column: pa.Array) -> list[Any]:
    """Return a column's Python values, with turns as (role, content) pairs and times as microseconds.

    This is several times faster than pyarrow's dicts and datetimes.
    """
    if pa.types.is_timestamp(column.type):
        return list(column.cast(pa.int64()).to_pylist())
    if column.type == SCHEMA.field("prompt").type:
        flat = column.flatten()
        pairs = list(zip(flat.field(0).to_pylist(), flat.field(1).to_pylist(), strict=True))
        ends = column.offsets.to_pylist()
        return [pairs[start - ends[0] : end - ends[0]] for start, end in pairwise(ends)]
    return list(column.to_pylist())
