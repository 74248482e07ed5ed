"""Keeps processes running on one machine: starts them, restarts the ones that die, and stops them in order."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import structlog

from rewardloop_local.log_bound import bound_log
from rewardloop_local.start_record import StartRecord, report

log = structlog.get_logger()

_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 15.0
_STABLE_AFTER_S = 30.0
_BOUND_LOG_EVERY_S = 10.0


@dataclass(slots=True)
class Process:
    """One supervised process.

    Attributes:
        name: What messages call it.
        argv: The program and its arguments.
        log_path: The file to which its output is appended.
        env: Environment variables beside those of this process.
        grace_s: Seconds that it has to end after SIGTERM before it is killed.
        nice: Its niceness; 0 is this process's own.
        on_start: Called with its pid after each start. If it raises OSError, the process runs on, and `retry_record`
            calls it again.
        restarts: How often it was started again after it had died.
    """

    name: str
    argv: Sequence[str]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 20.0
    nice: int = 0
    on_start: Callable[[int], None] = lambda pid: None
    restarts: int = 0
    _popen: subprocess.Popen[bytes] | None = None
    _log: BinaryIO | None = None
    _started: float = 0.0
    _log_bounded: float = 0.0
    _record: StartRecord = field(init=False)

    def __post_init__(self) -> None:
        self._record = StartRecord(self.name, self.on_start)

    @property
    def pid(self) -> int | None:
        """Its process id; None before the first start."""
        return self._popen.pid if self._popen else None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Its exit status; None while it runs and before the first start."""
        return self._popen.poll() if self._popen else None

    @property
    def has_been_stable(self) -> bool:
        """Whether its last start was long ago, even if it has ended since."""
        return time.monotonic() - self._started > _STABLE_AFTER_S

    def start(self) -> None:
        """Start it, or start it again. Raises OSError if the system cannot."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self._log or self.log_path.open("ab")
        self._started = time.monotonic()
        self._popen = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.env},
            start_new_session=True,  # so that Ctrl-C reaches the supervisor alone, which stops the others in order
        )
        self._record.started(self._popen.pid)
        if self.nice:
            os.setpriority(os.PRIO_PROCESS, self._popen.pid, self.nice)

    def retry_record(self) -> None:
        """Call ``on_start`` again if it has failed since the last start."""
        self._record.retry()

    def bound_log(self) -> None:
        """Keep its log from growing without end. Looks at it every few seconds only."""
        if time.monotonic() - self._log_bounded < _BOUND_LOG_EVERY_S:
            return
        self._log_bounded = time.monotonic()
        try:
            bound_log(self.log_path)
        except OSError as error:  # a full disk has no room for a copy; the log is looked at again
            report(log.warning, "log not bounded", process=self.name, error=str(error))

    async def wait(self, patience_s: float | None = None) -> int:
        """Wait for its end and return its exit status. Raises subprocess.TimeoutExpired after ``patience_s``."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return await asyncio.to_thread(self._popen.wait, patience_s)

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if it has not ended after its grace time. Does nothing if it does not run."""
        if self._popen is not None and self.is_running:
            self._popen.send_signal(signal.SIGTERM)
            try:
                await self.wait(self.grace_s)
            except subprocess.TimeoutExpired:
                report(log.warning, "killed after its grace time", process=self.name)
                self._popen.kill()
                await self.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


class Supervisor:
    """Keeps processes running until `stop`. Starts them in the order in which they are added."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self._watchers: list[asyncio.Task[None]] = []

    def add(self, process: Process) -> Process:
        """Start a process, and start it again with growing delays whenever it dies."""
        self.processes.append(process)
        process.start()
        self._watchers.append(asyncio.create_task(self._watch(process)))
        return process

    async def stop(self) -> None:
        """Stop the processes in the reverse order of their start."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for process in reversed(self.processes):
            await process.stop()

    async def _watch(self, process: Process) -> None:
        backoff = _FIRST_BACKOFF_S
        while True:
            await asyncio.sleep(0.1)
            if process.is_running:
                process.retry_record()
                process.bound_log()
                if process.has_been_stable:
                    backoff = _FIRST_BACKOFF_S
                continue
            report(
                log.warning,
                "process died, restarting",
                process=process.name,
                exit_status=process.exit_status,
                retry_s=backoff,
                log=str(process.log_path),
            )
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, _MAX_BACKOFF_S)
            process.restarts += 1
            try:
                process.start()
            except OSError as error:  # there is no memory or no disk for it now, so it is tried again later
                report(log.error, "process not started", process=process.name, error=str(error))
