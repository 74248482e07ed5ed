"""The trainer's spans: an entry consumed, a segment archived, a round. Imported only if tracing is on.

A consumed entry belongs to the trace in which its signal was sent. A segment holds entries of many traces and a round
learns from many segments, so segments and rounds are traces of their own, with links.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

from opentelemetry.trace import Link, SpanContext, SpanKind

from rewardloop.formats import keys
from rewardloop.process.grpc_tracing import context_of, tracer

# The SDK keeps at most so many links of one span.
_MOST_LINKS = 128


class TrainerTracing:
    """Makes the trainer's spans. The consumer's thread and the learning thread share it."""

    def __init__(self) -> None:
        self._consumed: deque[SpanContext] = deque(maxlen=_MOST_LINKS)
        self._archived: deque[SpanContext] = deque(maxlen=_MOST_LINKS)
        self._lock = Lock()

    def consumed(self, stream_id: str, fields: Mapping[bytes, bytes]) -> None:
        """Record that an entry was read. An entry that was sent outside of any trace gets no span."""
        sent_in = fields.get(keys.TRACE_FIELD.encode())
        if not sent_in:
            return
        attributes = {"messaging.system": "redis", "messaging.message.id": stream_id}
        parent = context_of(sent_in.decode("ascii", "replace"))
        span = tracer().start_span("consume", parent, SpanKind.CONSUMER, attributes)
        self._consumed.append(span.get_span_context())
        span.end()

    @contextmanager
    def archiving(self, rows: int) -> Iterator[None]:
        """Trace the block, which writes a segment, and link it with the entries consumed since the last segment."""
        links = [Link(each) for each in self._consumed]
        self._consumed.clear()
        with tracer().start_as_current_span("archive", links=links, attributes={"rewardloop.rows": rows}) as span:
            yield
        with self._lock:
            self._archived.append(span.get_span_context())

    @contextmanager
    def in_round(self, model: str, number: int) -> Iterator[None]:
        """Trace the block, which is a round or its rest, and link it with the segments archived since the last."""
        with self._lock:
            links = [Link(each) for each in self._archived]
            self._archived.clear()
        attributes: dict[str, str | int] = {"rewardloop.model": model, "rewardloop.round": number}
        with tracer().start_as_current_span("round", links=links, attributes=attributes):
            yield
