"""Decodes a stream entry into a signal, or says why it is none."""

from __future__ import annotations

import math
from collections.abc import Mapping

from google.protobuf.message import DecodeError

from rewardloop.formats import keys
from rewardloop.formats.text import ROLES
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
    if not event.responses or not all(event.responses):
        raise InvalidEntry("no responses, or an empty one")
    _check_signal(event)
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
    return bool(messages) and all(m.content and m.role in ROLES for m in messages)


def _check_signal(event: feedback_pb2.FeedbackEvent) -> None:
    kind = event.WhichOneof("signal")
    named: list[int]
    match kind:
        case "choice":
            named = [event.choice.chosen, event.choice.rejected]
        case "tie":
            named = [event.tie.first, event.tie.second]
        case "ranking":
            named = list(event.ranking.order)
            if sorted(named) != list(range(len(event.responses))) or len(named) < 2:
                raise InvalidEntry("the ranking is no permutation of two or more responses")
        case "thumb":
            named = [event.thumb.response]
        case "rating":
            named = [event.rating.response]
            value, low, high = event.rating.value, event.rating.minimum, event.rating.maximum
            if not all(map(math.isfinite, (value, low, high))) or not low <= value <= high or low == high:
                raise InvalidEntry("the rating is not finite and within its range")
        case "edit":
            named = [event.edit.response]
            if not event.edit.edited_text:
                raise InvalidEntry("the edit is empty")
        case _:
            raise InvalidEntry("no signal")
    if not all(0 <= i < len(event.responses) for i in named):
        raise InvalidEntry(f"the {kind} names a response that is not there")
    if kind in ("choice", "tie") and named[0] == named[1]:
        raise InvalidEntry(f"the {kind} names one response twice")
