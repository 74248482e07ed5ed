"""Runs rewardloop's processes on one machine: starts them, restarts what dies, stops them in order."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import structlog

log = structlog.get_logger()

_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 15.0
_STABLE_AFTER_S = 30.0


@dataclass(slots=True)
class Process:
    """One supervised process; its output goes to ``log_path``."""

    name: str
    argv: Sequence[str]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 20.0
    nice: int = 0
    restarts: int = 0
    _popen: subprocess.Popen[bytes] | None = None
    _log: BinaryIO | None = None
    _started: float = 0.0

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen else None

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_status(self) -> int | None:
        return self._popen.poll() if self._popen else None

    @property
    def has_been_stable(self) -> bool:
        return time.monotonic() - self._started > _STABLE_AFTER_S

    def start(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self._log or self.log_path.open("ab")
        self._started = time.monotonic()
        self._popen = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.env},
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which then stops the others in order
        )
        if self.nice:
            os.setpriority(os.PRIO_PROCESS, self._popen.pid, self.nice)

    async def wait(self, patience_s: float | None = None) -> int:
        """Its exit status once it ended. Raises subprocess.TimeoutExpired after ``patience_s``."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return await asyncio.to_thread(self._popen.wait, patience_s)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after the grace time."""
        if self._popen is not None and self.is_running:
            self._popen.send_signal(signal.SIGTERM)
            try:
                await self.wait(self.grace_s)
            except subprocess.TimeoutExpired:
                log.warning("killed after its grace time", process=self.name)
                self._popen.kill()
                await self.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


class Supervisor:
    """Keeps processes running until `stop`; started in the order given, stopped in the reverse."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self._watchers: list[asyncio.Task[None]] = []

    def add(self, process: Process) -> Process:
        """Start it and restart it with growing delays whenever it dies."""
        self.processes.append(process)
        process.start()
        self._watchers.append(asyncio.create_task(self._watch(process)))
        return process

    async def stop(self) -> None:
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
                if process.has_been_stable:
                    backoff = _FIRST_BACKOFF_S
                continue
            log.warning(
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
            except OSError as error:  # no memory or no disk for it now: tried again, like one that dies at once
                log.error("process not started", process=process.name, error=str(error))
