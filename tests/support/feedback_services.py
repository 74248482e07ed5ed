"""The FeedbackService behind a real door with callers, on a real Redis."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from rewardloop.v1 import feedback_pb2_grpc
from rewardloop_client import AsyncRewardloopClient
from rewardloop_local.ports import free_port
from rewardloop_server.calls.validate import Limits
from rewardloop_server.doors.entrance import Entrance
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.doors.settings import DoorSettings
from rewardloop_server.feedback.caps import Caps
from rewardloop_server.feedback.erasures import ErasureDesk
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.servicer import FeedbackServicer, fill_in
from rewardloop_server.feedback.spool import Spool
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.observe.metrics import ServerMetrics
from support.doors import CallersFile


@asynccontextmanager
async def feedback_for(
    redis: Redis,
    callers: CallersFile,
    *names: str,
    caps: Caps | None = None,
    needs_generation: bool = False,
    roles: Mapping[str, str] | None = None,
    spool: Path | None = None,
) -> AsyncIterator[list[AsyncRewardloopClient]]:
    """A client for each name, whose tokens allow feedback, or what ``roles`` says."""
    metrics = ServerMetrics()
    tokens = [callers.add(name, (roles or {}).get(name, "feedback")) for name in names]
    audit_file = callers.path.parent / "audit.jsonl"
    entrance = Entrance(DoorSettings(callers=callers.path, audit_file=audit_file), metrics.registry, "test")
    server = entrance.server([RewardloopInterceptor(metrics, entrance.door)], 64 * 2**20)
    log = GenerationLog(redis, 60, is_by_caller=needs_generation)
    desk = ErasureDesk(redis, spool=str(spool or ""))
    intake = Intake(
        FeedbackStream(redis, 60, caps),
        log,
        functools.partial(fill_in, limits=Limits()),
        metrics,
        Spool(spool) if spool else None,
        64 * 2**20,
        desk,
    )
    entrance.door.audit.hide = desk.hidden
    await intake.open()
    servicer = FeedbackServicer(intake, Limits(), metrics, max_events=1000, needs_generation=needs_generation)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{free_port()}"
    entrance.open(server, address)
    background = [*entrance.upkeep(), *intake.upkeep()]
    upkeep = [asyncio.create_task(work) for work in background]
    await server.start()
    async with AsyncExitStack() as stack:
        clients: list[Any] = [
            await stack.enter_async_context(AsyncRewardloopClient(address, token=token, max_attempts=1))
            for token in tokens
        ]
        yield clients
    for task in upkeep:
        task.cancel()
    await server.stop(None)
    await intake.close()
