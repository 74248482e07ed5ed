"""A signal on its way to the stream: the event, what its caller said, and what the server adds to it."""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf import timestamp_pb2

from rewardloop.formats.keys import caller_key
from rewardloop.v1 import feedback_pb2

Event = feedback_pb2.FeedbackEvent

# What the server sets in every event, and what it fills in from a generation.
_STAMPED = ("arrival_time", "caller")
_FILLED_IN = ("prompt", "responses", "policy_version", "response_versions", "shown")


class Sender(NamedTuple):
    """What the server adds to each event of a call.

    Attributes:
        caller: The name of the authenticated caller; empty without authentication.
        stamp: The arrival time and the caller, serialized as fields of an event.
        key: The key of the caller's digests, so that callers have event_ids of their own; empty without authentication.
    """

    caller: str
    stamp: bytes
    key: bytes


class Signal(NamedTuple):
    """One signal. Two signals of a caller with one event_id are the same if `said` is.

    It is a tuple because there is one for each signal of a flood, and a frozen dataclass takes three times as long.

    Attributes:
        event: The event without the stamp. If it names a generation, it may be filled in from it later.
        said: The event as the caller sent it, serialized in one order of its fields and tags.
        sender: Who sent it, and when.
    """

    event: Event
    said: bytes
    sender: Sender

    @property
    def data(self) -> bytes:
        """The serialized event with its stamp. Serialized parts of one message may be joined, by protobuf's rules."""
        return (self.event.SerializeToString() if self.event.generation_id else self.said) + self.sender.stamp


def sent(event: Event, sender: Sender) -> Signal:
    """Return the signal of an event as its caller sent it, in which the server has set nothing yet."""
    return Signal(event, event.SerializeToString(deterministic=True), sender)


def sender_of(caller: str, arrival_ns: int) -> Sender:
    """Return the sender of a call that arrived at ``arrival_ns``, in Unix nanoseconds."""
    seconds, nanos = divmod(arrival_ns, 1_000_000_000)
    arrival = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
    return Sender(caller, Event(arrival_time=arrival, caller=caller).SerializeToString(), caller_key(caller))


def stored(data: bytes) -> Signal:
    """Return the signal of an event that was serialized with its stamp, whether it was filled in or not."""
    event = Event.FromString(data)
    stamp = Event(caller=event.caller)
    if event.HasField("arrival_time"):
        stamp.arrival_time.CopyFrom(event.arrival_time)
    sender = Sender(event.caller, stamp.SerializeToString(), caller_key(event.caller))
    for field in _STAMPED:
        event.ClearField(field)
    said = event
    if event.generation_id:
        said = Event()
        said.CopyFrom(event)
        for field in _FILLED_IN:
            said.ClearField(field)
    return Signal(event, said.SerializeToString(deterministic=True), sender)
