"""Labelling on a real Redis behind real gRPC, and tasks for it."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2, labelling_pb2_grpc
from rewardloop_client import AsyncRewardloopClient, NewTask
from rewardloop_local.ports import free_port
from rewardloop_server.calls.replication import Replication
from rewardloop_server.calls.validate import Limits
from rewardloop_server.feedback.caps import Caps
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.servicer import fill_in
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.labelling.desk import LabellingDesk, open_desk
from rewardloop_server.labelling.queue import QueueRules
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_trainer.archive.retraction import retraction_in
from support.grpc_servers import serving


@dataclass(frozen=True, slots=True)
class Desk:
    """Labelling that is served, and a client of it."""

    desk: LabellingDesk
    client: AsyncRewardloopClient
    metrics: ServerMetrics
    generations: GenerationLog


def desk_on(
    redis: Redis, metrics: ServerMetrics, rules: QueueRules | None = None, caps: Caps | None = None
) -> tuple[LabellingDesk, GenerationLog]:
    """Labelling on a Redis that nobody serves."""
    generations = GenerationLog(redis, 60)
    stream = FeedbackStream(redis, 60, caps)
    intake = Intake(stream, generations, functools.partial(fill_in, limits=Limits()), metrics)
    rules = rules or QueueRules(uniform_share=0.0)
    return open_desk(redis, Replication(redis), rules, intake, generations, Limits(), metrics), generations


@asynccontextmanager
async def labelling(redis: Redis, rules: QueueRules | None = None, caps: Caps | None = None) -> AsyncIterator[Desk]:
    metrics = ServerMetrics()
    desk, generations = desk_on(redis, metrics, rules, caps)
    add = labelling_pb2_grpc.add_LabellingServiceServicer_to_server
    address = f"127.0.0.1:{free_port()}"
    async with (
        serving(metrics, (add, desk.servicer), address=address),
        AsyncRewardloopClient(address) as client,  # on a busy machine Redis may be slow to answer
    ):
        yield Desk(desk, client, metrics, generations)


async def signals_in(redis: Redis) -> list[feedback_pb2.FeedbackEvent]:
    """The signals in the stream that were not taken back, as the trainer reads it."""
    events: list[feedback_pb2.FeedbackEvent] = []
    for stream_id, fields in await redis.xrange(keys.FEEDBACK_STREAM):
        if (gone := retraction_in(stream_id.decode(), fields)) is not None:
            events = [e for e in events if (e.import_id, e.caller) != (gone.import_id, gone.caller)]
        else:
            events.append(feedback_pb2.FeedbackEvent.FromString(fields[keys.EVENT_FIELD.encode()]))
    return events


def pair(number: int, **more: object) -> NewTask:
    """A pair of which the first candidate was added first."""
    return NewTask(kinds=["choice"], prompt=f"p{number}", candidates=["first", "second"], **more)  # type: ignore[arg-type]
