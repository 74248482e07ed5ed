"""Permissions of written directories, and the place of what a process fetches.

Some writers ignore the umask: safetensors makes its files with mode 0600, and `tempfile.mkdtemp` a directory with 0700.
Another user, such as a server in a container, could then not read what was written.

A version is checked when it is fetched and read later. In a directory for everybody, another user could make the place
first, and change a version between the two.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

_PROBE = ".mode-probe"


def give_default_modes(directory: Path) -> None:
    """Give ``directory`` and all below it the modes of newly made ones: 0777 and 0666, less the umask.

    Links are left alone.
    """
    # The umask cannot be read without setting it for all threads, so the mode of a new file tells it.
    probe = directory / _PROBE
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o777)
    try:
        mode = os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)
        probe.unlink()
    for path in (*directory.rglob("*"), directory):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)


@cache
def private_cache() -> Path:
    """Return the cache of this user, or of this process alone if the user has no home directory to write to.

    Its permissions let nobody else in. The same call returns the same directory for as long as the process lives.
    """
    try:
        directory = Path.home() / ".cache" / "rewardloop"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(0o700)
            return directory
    except (OSError, RuntimeError):  # RuntimeError: the user has no home directory
        pass  # a process in a container may have none; it keeps its versions for as long as it lives
    return Path(tempfile.mkdtemp(prefix="rewardloop-"))
