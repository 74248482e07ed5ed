"""Decodes a stream entry into a signal, or says why it is none."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from rewardloop.formats import keys
from rewardloop.formats.messages import tool_problems
from rewardloop.formats.signals import signal_problems
from rewardloop.formats.vocabulary import ROLES
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_trainer.archive.ledger_columns import Recorded


class InvalidEntry(Exception):
    """Raised for an entry that belongs into the dead-letter stream; the message is the reason."""


def decode(stream_id: str, fields: Mapping[bytes, bytes]) -> Recorded:
    """Return the signal of one entry. An event without an arrival time gets the time of its stream id.

    The server checks what callers send. These checks are for entries that reached the stream in another way.

    Raises:
        InvalidEntry: If the entry holds no complete signal.
    """
    raw = fields.get(keys.EVENT_FIELD.encode())
    if raw is None:
        raise InvalidEntry(f"no field {keys.EVENT_FIELD!r}")
    try:
        event = feedback_pb2.FeedbackEvent.FromString(raw)
    except DecodeError as error:
        raise InvalidEntry(f"not a FeedbackEvent: {error}") from error
    if not event.event_id:
        raise InvalidEntry("no event_id")
    if not _is_complete(event.prompt):
        raise InvalidEntry("no prompt, or one with an empty or unknown turn")
    for field, problem in tool_problems(event.prompt):
        raise InvalidEntry(f"prompt.{field}: {problem}")
    if not event.responses or not all(event.responses):
        raise InvalidEntry("no responses, or an empty one")
    for field, problem in signal_problems(event, event.responses):
        raise InvalidEntry(f"{field}: {problem}")
    try:
        feedback_pb2.Source.Name(event.source)
    except ValueError as error:
        raise InvalidEntry(f"unknown source {event.source}") from error
    if not event.HasField("arrival_time"):
        event.arrival_time.FromMilliseconds(int(stream_id.partition("-")[0]))
    return Recorded(stream_id, event)


def _is_complete(prompt: common_pb2.Prompt) -> bool:
    if prompt.WhichOneof("content") == "text":
        return bool(prompt.text)
    messages = prompt.conversation.messages
    return bool(messages) and all((m.content or m.tool_calls) and m.role in ROLES for m in messages)
