"""The composition root of the engine's process: sessions, the batcher, and the desk that answers the fronts."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable

import structlog

from rewardloop.formats.mixing.names import REWARD
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.channel.desk import Desk
from rewardloop_server.channel.front import Folder
from rewardloop_server.channel.holdings import Holdings
from rewardloop_server.guard.last_resort import CLOSING_S, end_after, end_now
from rewardloop_server.lifecycle import open_store
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.observe.polling import poll_loop_lag, poll_queues
from rewardloop_server.scoring_parts import load_threads, local_engine
from rewardloop_server.serving import spare_pauses
from rewardloop_server.settings import PROG, ServeSettings

log = structlog.get_logger()


async def run_engine(
    settings: ServeSettings,
    folder: Folder,
    metrics: ServerMetrics,
    on_ready: Callable[[], None],
    at_end: Callable[[Callable[[], object]], None],
) -> int:
    """Answer the fronts until the service ends. Returns the exit status: 1 if the engine cannot go on.

    Args:
        settings: Of this process.
        folder: Where the fronts find its socket.
        metrics: Where queues and runs are measured.
        on_ready: Called once it answers.
        at_end: Has what it is given called, in another thread, once no new front will come.
    """
    parts = local_engine(settings, open_store(settings, PROG), metrics)
    desk = Desk(parts.batcher, Holdings(parts.store, parts.load, load_threads(settings)))
    metrics.engine_stuck.labels(model=REWARD).set_function(lambda: float(parts.batcher.is_stuck))
    metrics.runs_by(settings.engine)
    metrics.announce(REWARD, (), QUEUE_LANES)
    metrics.announce_scoring((REWARD, *settings.reward_models))
    loop, is_over = asyncio.get_running_loop(), asyncio.Event()
    folder.engine.unlink(missing_ok=True)
    server = await loop.create_unix_server(desk.connection, str(folder.engine))
    at_end(lambda: loop.call_soon_threadsafe(is_over.set))
    works = (
        parts.watch.run(),
        parts.batcher.run(),
        desk.report(),
        poll_loop_lag(metrics),
        poll_queues(parts.batcher),
    )
    tasks = [asyncio.create_task(work) for work in works]
    over = asyncio.create_task(_until(is_over))
    spare_pauses()
    on_ready()
    await asyncio.wait([over, *tasks], return_when=asyncio.FIRST_COMPLETED)
    status = 0
    for task in tasks:
        if task.done() and (error := task.exception()) is not None:
            log.critical("the engine cannot go on", exc_info=error)
            status = 1
    if status == 0:
        end_after(settings.drain_grace_s + 2 * CLOSING_S)
        await _until_left(desk, settings.drain_grace_s + CLOSING_S)
        shutil.rmtree(folder.path, ignore_errors=True)  # the process that made it may have been killed
    server.close()
    for task in (over, *tasks):
        task.cancel()
    await asyncio.gather(over, *tasks, return_exceptions=True)
    parts.close()
    if parts.watch.has_work:
        end_now(status)
    return status


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _until_left(desk: Desk, patience_s: float) -> None:
    """Wait until the fronts have drained and hung up."""
    deadline = time.monotonic() + patience_s
    while desk.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - it is about to end
        await asyncio.sleep(0.02)
