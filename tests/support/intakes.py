"""An intake without a spool, for tests of what stands before it."""

from __future__ import annotations

import functools

from rewardloop_server.calls.validate import Limits
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.servicer import fill_in
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.observe.metrics import ServerMetrics


def intake_of(stream: FeedbackStream, generations: GenerationLog, metrics: ServerMetrics) -> Intake:
    return Intake(stream, generations, functools.partial(fill_in, limits=Limits()), metrics)
