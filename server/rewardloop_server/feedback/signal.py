"""A signal on its way to the stream: the event, what its caller said, and what the server adds to it."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import timestamp_pb2

from rewardloop.v1 import feedback_pb2

Event = feedback_pb2.FeedbackEvent

# What the server sets in every event, and what it fills in from a generation.
_STAMPED = ("arrival_time", "caller")
_FILLED_IN = ("prompt", "responses", "policy_version", "response_versions", "shown")


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal. Two signals of a caller with one event_id are the same if `said` is.

    Attributes:
        event: The event without the stamp. If it names a generation, it may be filled in from it later.
        said: The event as the caller sent it, serialized in one order of its fields and tags.
        stamp: The arrival time and the caller, serialized as fields of an event.
        caller: The name of the authenticated caller; empty without authentication.
    """

    event: Event
    said: bytes
    stamp: bytes = b""
    caller: str = ""

    @property
    def data(self) -> bytes:
        """The serialized event with its stamp. Serialized parts of one message may be joined, by protobuf's rules."""
        return (self.event.SerializeToString() if self.event.generation_id else self.said) + self.stamp


def sent(event: Event, stamp: bytes, caller: str) -> Signal:
    """Return the signal of an event as its caller sent it, in which the server has set nothing yet."""
    return Signal(event, event.SerializeToString(deterministic=True), stamp, caller)


def stamp_of(caller: str, arrival_ns: int) -> bytes:
    """Return what the server adds to each event of a call that arrived at ``arrival_ns``, in Unix nanoseconds."""
    seconds, nanos = divmod(arrival_ns, 1_000_000_000)
    return Event(arrival_time=timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos), caller=caller).SerializeToString()


def stored(data: bytes) -> Signal:
    """Return the signal of an event that was serialized with its stamp, whether it was filled in or not."""
    event = Event.FromString(data)
    stamp = Event(caller=event.caller)
    if event.HasField("arrival_time"):
        stamp.arrival_time.CopyFrom(event.arrival_time)
    for field in _STAMPED:
        event.ClearField(field)
    said = event
    if event.generation_id:
        said = Event()
        said.CopyFrom(event)
        for field in _FILLED_IN:
            said.ClearField(field)
    return Signal(event, said.SerializeToString(deterministic=True), stamp.SerializeToString(), stamp.caller)
