"""An intake without a spool, for tests of what stands before it."""

from __future__ import annotations

import functools

from rewardloop_server.feedback import fill_in
from rewardloop_server.feedback_stream import FeedbackStream
from rewardloop_server.generations import GenerationLog
from rewardloop_server.intake import Intake
from rewardloop_server.metrics import ServerMetrics
from rewardloop_server.validate import Limits


def intake_of(stream: FeedbackStream, generations: GenerationLog, metrics: ServerMetrics) -> Intake:
    return Intake(stream, generations, functools.partial(fill_in, limits=Limits()), metrics)
