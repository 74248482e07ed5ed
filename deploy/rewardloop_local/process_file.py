"""Keeps the processes of a deployment in a file, so that they can be found after their supervisor was killed."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

# The system counts start times in hundredths of a second, from a time of boot that clock corrections can shift.
_START_TOLERANCE_S = 2.0

SUPERVISOR = "supervisor"


@dataclass(frozen=True, slots=True)
class RecordedProcess:
    """A process as it was when it was started.

    Attributes:
        name: Its name in the deployment, such as ``serve``.
        pid: Its process id.
        started: Its start as Unix time in seconds.
        executable: The file that it runs.
    """

    name: str
    pid: int
    started: float
    executable: str

    def find(self) -> psutil.Process | None:
        """The process if it still runs. None if it has ended, even if another process has its pid now."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started) < _START_TOLERANCE_S
            is_same = is_same and process.exe() == self.executable
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None


class ProcessFile:
    """The file ``processes.json`` of a data directory. Only the supervisor of that directory writes it."""

    def __init__(self, data: Path) -> None:
        self._path = data / "processes.json"
        self._lock = threading.Lock()  # Redis is started in a thread, beside the other processes

    def record(self, name: str, pid: int) -> None:
        """Note a process that was just started, in the place of an earlier one of this name."""
        try:
            process = psutil.Process(pid)
            started = RecordedProcess(name, pid, process.create_time(), process.exe())
        except psutil.NoSuchProcess:  # it has ended already
            return
        with self._lock:
            others = [each for each in self._read() if each.name != name]
            draft = self._path.with_suffix(".tmp")
            with draft.open("w", encoding="utf-8") as file:
                file.write(json.dumps([asdict(each) for each in (*others, started)], indent=1))
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._path)

    def running(self) -> list[RecordedProcess]:
        """The recorded processes that still run, in the order of their start."""
        return [each for each in self._read() if each.find() is not None]

    def clear(self) -> None:
        """Forget all processes, because they have ended."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> list[RecordedProcess]:
        try:
            return [RecordedProcess(**each) for each in json.loads(self._path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []
