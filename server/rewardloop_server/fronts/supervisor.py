"""The process that starts the engine's and the fronts', starts each again that ends, and drains them at the end.

take the port -> engine -> fronts -> until a signal: start again what ends -> drain the fronts -> end the engine
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from rewardloop.process.metrics_page import CannotListen, serve_metrics
from rewardloop.process.setting_names import ENV_PREFIX
from rewardloop_server.channel.front import Folder
from rewardloop_server.channel.pages import Pages
from rewardloop_server.fronts.order import Order, orders
from rewardloop_server.fronts.port import PortTaken, take_port
from rewardloop_server.guard.last_resort import CLOSING_S, end_after
from rewardloop_server.lifecycle import wait_for_signal
from rewardloop_server.settings import PROG, ServeSettings

log = structlog.get_logger()

# A process that ends is started again after this pause, which doubles until a process has lived for `_STEADY_S`.
_PAUSE_S, _MOST_PAUSE_S, _STEADY_S = 0.1, 10.0, 10.0
# A process that is ready and has said nothing for so long hangs. One that lives says each second that it does. This
# process may have stood still itself, with all others, under SIGSTOP or on a paused machine. So the silence is counted
# in waits of `_WAIT_S`, and such a pause counts as one of them.
_SILENT_S, _WAIT_S = 30.0, 5.0
# The longest path of a Unix socket has 107 bytes.
_LONGEST_FOLDER = 80


class CannotStart(Exception):
    """Raised when a process ends before it was ready for the first time. Its own message says why."""


async def supervise(settings: ServeSettings) -> int:
    """Run the service until SIGTERM or SIGINT, then drain. Returns the exit status."""
    try:
        address, holders = take_port(settings.listen)
    except PortTaken as error:
        raise SystemExit(f"{PROG}: cannot listen on {settings.listen}: {error}") from error
    path = Path(tempfile.mkdtemp(prefix="rewardloop-"))  # of mode 0700
    try:
        if len(str(path)) > _LONGEST_FOLDER:
            raise SystemExit(f"{PROG}: the temporary folder {path} has too long a name for sockets: set TMPDIR")
        return await _run(settings.model_copy(update={"listen": address}), Folder(path))
    finally:
        shutil.rmtree(path, ignore_errors=True)
        for holder in holders:
            holder.close()


async def _run(settings: ServeSettings, folder: Folder) -> int:
    registry = CollectorRegistry()
    registry.register(Pages(folder))
    try:
        end_page = serve_metrics(settings.metrics_port, settings.metrics_host, registry)
    except CannotListen as error:
        raise SystemExit(str(error)) from error
    of_engine, of_fronts = orders(settings, folder.path)
    engine, fronts = Child(of_engine), [Child(each) for each in of_fronts]
    stop = asyncio.create_task(wait_for_signal())
    work: list[asyncio.Task[None]] = []
    status = 0
    try:
        work += [asyncio.create_task(engine.keep())]
        await _until(engine.is_ready.wait(), [stop, *work])
        if engine.is_ready.is_set():
            work += [asyncio.create_task(front.keep()) for front in fronts]
        await _until(_all_ready(fronts), [stop, *work])
        if not stop.done() and not any(task.done() for task in work):
            log.info("listening", address=settings.listen, fronts=len(fronts), metrics_port=settings.metrics_port)
        await asyncio.wait([stop, *work], return_when=asyncio.FIRST_COMPLETED)
        for task in work:
            if task.done() and (why := task.exception()) is not None:
                log.critical("the service cannot start", error=str(why))
                status = 1
    finally:
        log.info("draining", grace_s=settings.drain_grace_s)
        end_after(settings.drain_grace_s + 3 * CLOSING_S)
        # The engine ends once the fronts have left it.
        statuses = await asyncio.gather(*(front.end(settings.drain_grace_s + CLOSING_S) for front in fronts))
        statuses.append(await engine.end(CLOSING_S))
        await asyncio.gather(*work, return_exceptions=True)
        stop.cancel()
        end_page()
    log.info("stopped")
    return status or int(any(statuses))


class Child:
    """A process of the service, which is started again whenever it ends."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process: asyncio.subprocess.Process | None = None
        self._is_ending = False
        self._woken = asyncio.Event()
        self.is_ready = asyncio.Event()

    async def keep(self) -> None:
        """Run the process, and another in its place, until `end`.

        Raises CannotStart if the first one ends before it is ready: the same would become of any other.
        """
        pause_s = _PAUSE_S
        while not self._is_ending:
            started = time.monotonic()
            process = await self._start()
            status = await self._ended(process)
            if self._is_ending:
                return
            if not self.is_ready.is_set():
                raise CannotStart(f"{self._order.name} has ended with status {status}")
            pause_s = _PAUSE_S if time.monotonic() - started > _STEADY_S else min(2 * pause_s, _MOST_PAUSE_S)
            log.error("a process has ended", process=self._order.name, status=status, restart_s=pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        """Return the exit status of the process, which is killed if its event loop no longer turns."""
        assert process.stdout is not None
        silent_s = 0.0
        while silent_s < _SILENT_S:
            try:
                async with asyncio.timeout(_WAIT_S):
                    said = await process.stdout.readline()
            except TimeoutError:
                silent_s += _WAIT_S
            else:
                if not said:
                    return await process.wait()
                silent_s = 0.0
        log.critical("a process hangs, so it is killed", process=self._order.name, silent_s=_SILENT_S)
        with suppress(ProcessLookupError):  # it has just ended
            process.kill()
        return await process.wait()

    async def end(self, patience_s: float) -> int:
        """Drain the process, and kill it if that takes longer. Returns 0, or 1 if it did not end as it should."""
        self._is_ending = True
        self._woken.set()
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            self._tell(process)
            try:
                async with asyncio.timeout(patience_s):
                    await process.wait()
            except TimeoutError:
                log.critical("the drain does not end, so the process is killed", process=self._order.name)
                process.kill()
                await process.wait()
        return 0 if process.returncode in (0, -signal.SIGTERM) else 1  # the latter before it could drain

    def _tell(self, process: asyncio.subprocess.Process) -> None:
        """Tell the process to end. The engine's takes no signals, because it must outlive the fronts."""
        if not self._order.is_engine:
            with suppress(ProcessLookupError):  # it has just ended
                process.send_signal(signal.SIGTERM)
        elif process.stdin is not None:
            process.stdin.close()

    async def _start(self) -> asyncio.subprocess.Process:
        process = self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "rewardloop_server.fronts.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # What the environment says is in the order already, and would outrank the flags there.
            env={name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)},
        )
        log.info("process started", process=self._order.name, pid=process.pid)
        if self._is_ending:  # it was being started meanwhile
            self._tell(process)
            return process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._order.to_line())
        with suppress(ConnectionError):  # it died: its end tells
            await process.stdin.drain()
        if await process.stdout.readline():
            self.is_ready.set()
        return process


async def _all_ready(children: list[Child]) -> None:
    for child in children:
        await child.is_ready.wait()


async def _until(wanted: Coroutine[Any, Any, object], others: Iterable[asyncio.Task[None]]) -> None:
    """Wait for what is wanted, or for the end of any of the other tasks."""
    waiting = asyncio.create_task(wanted)
    await asyncio.wait([waiting, *others], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
