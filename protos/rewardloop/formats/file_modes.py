"""Permissions of written directories.

Some writers ignore the umask: safetensors makes its files with mode 0600, and `tempfile.mkdtemp` a directory with 0700.
Another user, such as a server in a container, could then not read what was written.
"""

from __future__ import annotations

import os
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
