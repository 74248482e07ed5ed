"""An intake without a spool, for tests of what stands before it, and signals for what stands behind."""

from __future__ import annotations

import functools

from rewardloop.v1 import feedback_pb2
from rewardloop_server.calls.validate import Limits
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.servicer import fill_in
from rewardloop_server.feedback.signal import Signal, stored
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.observe.metrics import ServerMetrics


def intake_of(stream: FeedbackStream, generations: GenerationLog, metrics: ServerMetrics) -> Intake:
    return Intake(stream, generations, functools.partial(fill_in, limits=Limits()), metrics)


def signals(*events: feedback_pb2.FeedbackEvent) -> list[Signal]:
    """The events as the server takes them; their callers and arrival times are the stamps."""
    return [stored(event.SerializeToString()) for event in events]
