"""Converts signals to the ledger's Parquet columns and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from rewardloop.formats.messages import ToolCall, Turn, prompt_of, tools_of, turns
from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2

_TIME = pa.timestamp("us", tz="UTC")

# A turn. What follows its content is null in turns without it, and in segments that are older than these fields.
_CALL = pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments_json", pa.string())])
_TURN = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("tool_calls", pa.list_(_CALL)),
        ("name", pa.string()),
        ("tool_call_id", pa.string()),
    ]
)

SCHEMA = pa.schema(
    [
        pa.field("stream_id", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("prompt", pa.list_(_TURN), nullable=False),
        pa.field("tools", pa.list_(pa.string())),  # JSON schemas of the functions that may be called
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
        pa.field("caller", pa.string()),  # null without authentication
        pa.field("source", pa.string(), nullable=False),
        pa.field("tags", pa.map_(pa.string(), pa.string())),
        pa.field("generation_id", pa.string()),
        pa.field("policy_version", pa.string()),
        pa.field("policy_digest", pa.string()),
        pa.field("response_versions", pa.list_(pa.string())),
        pa.field("event_time", _TIME),
        pa.field("arrival_time", _TIME, nullable=False),
        pa.field("display_order", pa.list_(pa.int32())),
        pa.field("aspect", pa.string()),  # the reward model that learns from it; null: "reward"
        pa.field("guideline_version", pa.string()),
        pa.field("import_id", pa.string()),  # null for a signal that came alone
        # How the responses of a generation came to be shown. The columns have the names of the message's fields.
        pa.field("selection", pa.string()),
        pa.field("sampled", pa.int32()),
        pa.field("random_share", pa.float64()),
        pa.field("is_random", pa.bool_()),
        pa.field("set_probability", pa.float64()),
        pa.field("reward_version", pa.string()),
        pa.field("reward_model", pa.string()),  # null: "reward"
        pa.field("meeting_floors", pa.int32()),
        pa.field("show_probabilities", pa.list_(pa.float64())),
        pa.field("temperature", pa.float64()),
        pa.field("top_p", pa.float64()),
        pa.field("log_probabilities", pa.list_(pa.float64())),
        pa.field("token_counts", pa.list_(pa.int32())),
        pa.field("scores", pa.list_(pa.float64())),
        # How the task came to its labeller whom the signal answers; null for a signal that answers none.
        pa.field("task_project", pa.string()),
        pa.field("task_id", pa.string()),
        pa.field("task_probability", pa.float64()),
        pa.field("task_is_uniform", pa.bool_()),
        pa.field("task_information", pa.float64()),
        pa.field("task_seconds", pa.float64()),
        # The id that Redis gave the signal, if it is not `stream_id`; see `Recorded`.
        pa.field("source_id", pa.string()),
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
_TASK_OPTIONAL = ("information", "seconds")
_CHOSEN_NUMBERS = ("sampled", "random_share", "is_random", "set_probability")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One signal as the stream delivered it.

    Attributes:
        stream_id: Its place in the ledger, which is its id in the feedback stream unless that is not above the places
            of earlier rows.
        event: The signal; its ``arrival_time`` is always set.
        source_id: Its id in the feedback stream, if it has another place; else "".
    """

    stream_id: str
    event: feedback_pb2.FeedbackEvent
    source_id: str = ""


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
    if "prompt" in table.column_names:
        table = table.set_column(
            table.column_names.index("prompt"), SCHEMA.field("prompt"), _whole_turns(table["prompt"])
        )
    for field in SCHEMA:
        if field.name not in table.column_names and field.nullable:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.replace_schema_metadata().select(SCHEMA.names).cast(SCHEMA)


def from_table(table: pa.Table) -> Iterator[Recorded]:
    """Yield the rows of a table in `SCHEMA`, in its order."""
    for batch in table.to_batches():
        columns = {name: _python(batch.column(name)) for name in SCHEMA.names}
        for i, kind in enumerate(columns["kind"]):
            yield Recorded(columns["stream_id"][i], _event(columns, kind, i), columns["source_id"][i] or "")


def _values(row: Recorded) -> dict[str, Any]:
    event = row.event
    kind = str(event.WhichOneof("signal"))
    signal = getattr(event, kind)
    values: dict[str, Any] = {
        "stream_id": row.stream_id,
        "event_id": event.event_id,
        "kind": kind,
        "prompt": [_row_of(turn) for turn in tools_of(turns(event.prompt))[1]],
        "tools": list(event.prompt.tools_json) or None,
        "responses": list(event.responses),
        "annotator_id": event.annotator_id or None,
        "caller": event.caller or None,
        "source_id": row.source_id or None,
        "source": feedback_pb2.Source.Name(event.source or feedback_pb2.SOURCE_HUMAN).removeprefix("SOURCE_").lower(),
        "tags": sorted(event.tags.items()),
        "generation_id": event.generation_id or None,
        "policy_version": event.policy_version.version or None,
        "policy_digest": event.policy_version.digest or None,
        "response_versions": list(event.response_versions) or None,
        "display_order": list(event.display_order) or None,
        "aspect": event.aspect or None,
        "guideline_version": event.guideline_version or None,
        "import_id": event.import_id or None,
        "event_time": event.event_time.ToMicroseconds() if event.HasField("event_time") else None,
        "arrival_time": event.arrival_time.ToMicroseconds(),
    }
    for name in SIGNAL_COLUMNS[kind]:
        value = getattr(signal, name)
        is_absent = name in _OPTIONAL and not signal.HasField(name)
        values[name] = None if is_absent else list(value) if name == "order" else value
    if event.HasField("shown"):
        values |= _shown_values(event.shown)
    if event.HasField("task"):
        values |= _task_values(event.task)
    return values


def _task_values(task: feedback_pb2.TaskDraw) -> dict[str, Any]:
    values = {
        "task_project": task.project,
        "task_id": task.task_id,
        "task_probability": task.probability,
        "task_is_uniform": task.is_uniform,
    }
    return values | {f"task_{name}": getattr(task, name) for name in _TASK_OPTIONAL if task.HasField(name)}


def _shown_values(shown: feedback_pb2.Shown) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(shown, name) for name in _SHOWN_NUMBERS}
    values |= {name: list(getattr(shown, name)) or None for name in _SHOWN_LISTS}
    if shown.HasField("chosen"):
        chosen = shown.chosen
        values |= {name: getattr(chosen, name) for name in _CHOSEN_NUMBERS}
        values["selection"] = policy_pb2.Selection.Name(chosen.selection).removeprefix("SELECTION_").lower()
        values["reward_version"] = chosen.reward_version.version or None
        values["reward_model"] = chosen.reward_model or None
        values["meeting_floors"] = chosen.meeting_floors if chosen.HasField("meeting_floors") else None
    return values


def _event(columns: Mapping[str, Sequence[Any]], kind: str, i: int) -> feedback_pb2.FeedbackEvent:
    event = feedback_pb2.FeedbackEvent(
        event_id=columns["event_id"][i],
        generation_id=columns["generation_id"][i],
        prompt=_prompt(columns["prompt"][i], columns["tools"][i]),
        responses=columns["responses"][i],
        annotator_id=columns["annotator_id"][i],
        caller=columns["caller"][i],
        source=f"SOURCE_{columns['source'][i].upper()}",
        tags=dict(columns["tags"][i] or ()),
        aspect=columns["aspect"][i],
        guideline_version=columns["guideline_version"][i],
        import_id=columns["import_id"][i],
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
    if columns["task_id"][i] is not None:
        _set_task(event.task, columns, i)
    return event


def _set_task(task: feedback_pb2.TaskDraw, columns: Mapping[str, Sequence[Any]], i: int) -> None:
    task.project, task.task_id = columns["task_project"][i], columns["task_id"][i]
    task.probability, task.is_uniform = columns["task_probability"][i], columns["task_is_uniform"][i]
    for name in _TASK_OPTIONAL:
        if (value := columns[f"task_{name}"][i]) is not None:
            setattr(task, name, value)


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
        shown.chosen.reward_model = columns["reward_model"][i] or ""
        if columns["meeting_floors"][i] is not None:
            shown.chosen.meeting_floors = columns["meeting_floors"][i]


def _row_of(turn: Turn) -> dict[str, Any]:
    calls = [{"id": call.id, "name": call.name, "arguments_json": call.arguments} for call in turn.tool_calls]
    return {
        "role": turn.role,
        "content": turn.content,
        "tool_calls": calls or None,
        "name": turn.name or None,
        "tool_call_id": turn.tool_call_id or None,
    }


def _prompt(said: Iterable[Turn], tools: Sequence[str] | None) -> common_pb2.Prompt:
    prompt = prompt_of(said)  # a text prompt is one user turn, by the contract
    prompt.tools_json.extend(tools or ())
    return prompt


def _whole_turns(prompts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bring a segment's turns into `SCHEMA`. A field that did not exist when it was written becomes null."""
    if prompts.type == pa.list_(_TURN):
        return prompts
    chunks = []
    for chunk in prompts.chunks:
        flat = chunk.flatten()
        known = {flat.type.field(i).name: flat.field(i) for i in range(flat.type.num_fields)}
        fields = [known.get(field.name, pa.nulls(len(flat), field.type)).cast(field.type) for field in _TURN]
        turns_ = pa.StructArray.from_arrays(fields, fields=list(_TURN))
        starts = pa.array([offset - chunk.offsets[0].as_py() for offset in chunk.offsets.to_pylist()], pa.int32())
        chunks.append(pa.ListArray.from_arrays(starts, turns_))
    return pa.chunked_array(chunks, pa.list_(_TURN))


def _python(column: pa.Array) -> list[Any]:
    """Return a column's Python values, with turns as `Turn` and times as microseconds.

    This is several times faster than pyarrow's dicts and datetimes.
    """
    if pa.types.is_timestamp(column.type):
        return list(column.cast(pa.int64()).to_pylist())
    if column.type == SCHEMA.field("prompt").type:
        flat = column.flatten()
        roles, contents = flat.field(0).to_pylist(), flat.field(1).to_pylist()
        if flat.field(2).null_count == flat.field(3).null_count == flat.field(4).null_count == len(flat):
            said = list(map(Turn, roles, contents))
        else:
            more = (flat.field(i).to_pylist() for i in (2, 3, 4))
            said = [
                Turn(role, content, tuple(map(_call, calls or ())), name or "", call_id or "")
                for role, content, calls, name, call_id in zip(roles, contents, *more, strict=True)
            ]
        ends = column.offsets.to_pylist()
        return [said[start - ends[0] : end - ends[0]] for start, end in pairwise(ends)]
    return list(column.to_pylist())


def _call(call: Mapping[str, str | None]) -> ToolCall:
    return ToolCall(call["name"] or "", call["arguments_json"] or "{}", call["id"] or "")
