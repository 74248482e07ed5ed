"""``rewardloop down``: ends what ``rewardloop up`` runs, or has left running, on a data directory."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from rewardloop.process.settings import ProcessSettings, parse

if TYPE_CHECKING:
    from rewardloop_local.process_file import ProcessFile, RecordedProcess


class DownSettings(ProcessSettings):
    """Ends the processes that 'rewardloop up' started on a data directory, in the reverse order of their start.

    The data directory is the one that --data names: rewardloop-data in the present folder if it is not given, as for
    'rewardloop up'. Its file of processes lists them with their pid, their start time and their program, so that no
    other process is ended.
    """

    basic_settings = ("data", "grace_s")

    data: Path = Field(
        Path("rewardloop-data"), description="data directory of the 'rewardloop up' whose processes are ended"
    )
    grace_s: float = Field(20.0, gt=0, description="seconds that each process has to end before it is killed")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if nothing runs any more, 1 if something does or if that cannot be known."""
    settings = parse(DownSettings, sys.argv[1:] if argv is None else argv, "rewardloop down")

    from rewardloop_local.process_file import ProcessFile, ProcessFileError

    try:
        return _down(ProcessFile(settings.data), settings)
    except ProcessFileError as error:
        print(f"rewardloop down: {error}", file=sys.stderr)
        return 1


def _down(file: ProcessFile, settings: DownSettings) -> int:
    from rewardloop_local.process_file import SUPERVISOR

    running = file.running()
    if not running:
        print(f"no rewardloop runs on {settings.data}")
        return 0
    # A supervisor that still runs ends its processes itself, and would restart them otherwise.
    supervisors = [each for each in running if each.name == SUPERVISOR]
    refused = [problem for each in supervisors if (problem := _end(each, settings.grace_s * len(running)))]
    if not refused:
        refused = [problem for each in reversed(file.running()) if (problem := _end(each, settings.grace_s))]
    if refused:
        print(f"rewardloop down: {', '.join(refused)}: run it as that user", file=sys.stderr)
        return 1
    if left := file.running():
        print(f"rewardloop down: {', '.join(f'{each.name} (pid {each.pid})' for each in left)} cannot be ended")
        return 1
    try:
        file.clear()
    except OSError as error:
        print(f"rewardloop down: everything has ended, but its file cannot be deleted: {error}", file=sys.stderr)
    return 0


def _end(recorded: RecordedProcess, grace_s: float) -> str | None:
    """End a process, and kill it if it has not ended after the grace time.

    Returns None, or what to say if it belongs to another user, who alone may end it.
    """
    import psutil

    process = recorded.find()
    if process is None:
        return None
    try:
        process.terminate()
        if _has_ended(recorded, grace_s):
            print(f"ended {recorded.name} (pid {recorded.pid})")
            return None
        process.kill()
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return f"{recorded.name} (pid {recorded.pid}) belongs to user {process.username()}"
    if _has_ended(recorded, grace_s):
        print(f"killed {recorded.name} (pid {recorded.pid}), which had not ended after {grace_s:.0f} s")
    return None


def _has_ended(recorded: RecordedProcess, patience_s: float) -> bool:
    """Wait for a process's end. Its parent need not have collected its exit status, as psutil's wait demands."""
    deadline = time.monotonic() + patience_s
    while recorded.find() is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    raise SystemExit(main())
