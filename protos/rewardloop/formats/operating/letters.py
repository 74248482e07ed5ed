"""A dead letter: a signal that the trainer could not read, and the script that puts its event back into the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from google.protobuf.message import DecodeError

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2

REQUEUE = files(__package__).joinpath("requeue.lua").read_text()
REQUEUE_KEYS = (keys.FEEDBACK_STREAM, keys.DEAD_LETTERS)


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter.

    Attributes:
        letter_id: Its id in the dead-letter stream, which begins with the milliseconds since 1970 at which it was put
            there.
        reason: Why it is there.
        source_id: The id that it had in the feedback stream; empty if it was never there.
        data: The bytes of its event as they were.
        event: The event, if the bytes are one.
    """

    letter_id: str
    reason: str
    source_id: str
    data: bytes
    event: feedback_pb2.FeedbackEvent | None

    @property
    def time_ms(self) -> int:
        """When it was put there, in milliseconds since 1970."""
        return int(self.letter_id.partition("-")[0])

    @property
    def requeue_arguments(self) -> tuple[str, ...]:
        """The arguments of `REQUEUE` for this letter."""
        event_id = "" if self.event is None else self.event.event_id
        return (self.letter_id, keys.DEAD_EVENT_FIELD, keys.EVENT_FIELD, keys.ID_FIELD, event_id)


def letter_of(letter_id: bytes, fields: Mapping[bytes, bytes]) -> Letter:
    """Read an entry of the dead-letter stream."""
    data = fields.get(keys.DEAD_EVENT_FIELD.encode(), b"")
    reason, source = (
        fields.get(name.encode(), b"").decode(errors="replace")
        for name in (keys.DEAD_REASON_FIELD, keys.DEAD_SOURCE_FIELD)
    )
    return Letter(letter_id.decode(), reason, source, data, _event(data))


def _event(data: bytes) -> feedback_pb2.FeedbackEvent | None:
    try:
        return feedback_pb2.FeedbackEvent.FromString(data) if data else None
    except DecodeError:
        return None
