"""Keeps the processes of a deployment in a file, so that they can be found after their supervisor was killed."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

# The system counts start times in hundredths of a second, from a time of boot that clock corrections can shift.
_START_TOLERANCE_S = 2.0

_PID_BOUND = 2**31  # the system's own type of a pid ends here

SUPERVISOR = "supervisor"


@dataclass(frozen=True, slots=True)
class RecordedProcess:
    """A process as it was when it was started.

    Attributes:
        name: Its name in the deployment, such as ``serve``.
        pid: Its process id.
        started: Its start as Unix time in seconds.
        executable: The file that it runs.
        data: The resolved data directory of its deployment; for people who read the file.
        device: The device of that directory. With ``inode``, it tells the directory from a copy, wherever it is moved.
        inode: The inode of that directory; 0 in a file that was written before directories were recorded.
    """

    name: str
    pid: int
    started: float
    executable: str
    data: str = ""
    device: int = 0
    inode: int = 0

    def find(self) -> psutil.Process | None:
        """The process if it still runs. None if it has ended, even if another process has its pid now.

        The system may hide the program of another user's process. Its pid and its start time must then suffice.
        """
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started) < _START_TOLERANCE_S
            with suppress(psutil.AccessDenied):
                is_same = is_same and process.exe() == self.executable
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class ProcessFileError(Exception):
    """Raised when the file cannot be read. The text is one line that says why, and how to look for what runs."""


class ProcessFile:
    """The file ``processes.json`` of a data directory. Only the supervisor of that directory writes it.

    The supervisor writes what it has recorded itself since it called `clear`, whatever the file holds meanwhile.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._path = data / "processes.json"
        self._recorded: dict[str, RecordedProcess] = {}
        self._lock = threading.Lock()  # Redis is started in a thread, beside the other processes

    def record(self, name: str, pid: int) -> None:
        """Note a process that was just started, in the place of an earlier one of this name.

        Raises OSError if the file cannot be written. The next call that succeeds writes this process, too.
        """
        try:
            process, place = psutil.Process(pid), self._data.stat()
            directory = (str(self._data.resolve()), place.st_dev, place.st_ino)
            started = RecordedProcess(name, pid, process.create_time(), process.exe(), *directory)
        except psutil.NoSuchProcess:  # it has ended already
            return
        with self._lock:
            self._recorded.pop(name, None)
            self._recorded[name] = started
            draft = self._path.with_suffix(".tmp")
            with draft.open("w", encoding="utf-8") as file:
                file.write(json.dumps([asdict(each) for each in self._recorded.values()], indent=1))
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._path)

    def running(self) -> list[RecordedProcess]:
        """The recorded processes that still run, in the order of their start. Raises ProcessFileError."""
        recorded = self._read()
        if not recorded:
            return []
        place = self._data.stat()
        here = [
            each for each in recorded if each.inode == 0 or (each.device, each.inode) == (place.st_dev, place.st_ino)
        ]
        return [each for each in here if each.find() is not None]

    def clear(self) -> None:
        """Forget all processes, because they have ended. Raises OSError if the file cannot be deleted."""
        self._recorded.clear()
        self._path.unlink(missing_ok=True)

    def _read(self) -> list[RecordedProcess]:
        try:
            return [_recorded_process(each) for each in _list(json.loads(self._path.read_text(encoding="utf-8")))]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ProcessFileError(f"{self._path} cannot be read: {error.strerror}") from error
        except (ValueError, OverflowError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
            raise ProcessFileError(
                f"{self._path} is damaged, so it cannot be known what still runs: look with "
                "pgrep -af 'rewardloop|redis-server', end what runs on this directory, and delete the file"
            ) from error


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def _directory(value: object) -> tuple[str, int, int]:
    """The data directory of an entry, its device and its inode. Raises ValueError if it is only named in part."""
    match value:
        case {"data": str(data), "device": int(device), "inode": int(inode)}:
            return data, device, inode
        case {"data": _} | {"device": _} | {"inode": _}:
            raise ValueError("not a directory")
    return "", 0, 0


def _recorded_process(value: object) -> RecordedProcess:
    """Check an entry of the file. Raises ValueError. Unknown keys are left to later versions."""
    match value:
        case {"name": str(name), "pid": int(pid), "started": int() | float() as started, "executable": str(executable)}:
            if 0 < pid < _PID_BOUND:
                return RecordedProcess(name, pid, float(started), executable, *_directory(value))
    raise ValueError("not a process")
