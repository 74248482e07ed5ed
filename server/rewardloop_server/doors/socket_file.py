"""Keeps two processes from listening on one Unix socket. gRPC would replace the first one's file without a word."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

_SCHEME = "unix:"


class SocketInUse(OSError):
    """Raised if another process listens on the socket."""


def claim(address: str) -> int | None:
    """Claim the Unix socket of a gRPC address for this process.

    Returns the descriptor that holds the claim and must stay open, or None for an address of another kind. The claim
    is a lock on ``PATH.lock``, which the system gives up when the process ends, however it ends.

    Raises:
        SocketInUse: Another process has the claim, or listens without one.
        OSError: The lock's file cannot be made.
    """
    if not address.startswith(_SCHEME):
        return None
    path = address.removeprefix(_SCHEME)
    path = path.removeprefix("//") if path.startswith("///") else path
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise SocketInUse(f"another process listens on {path}") from error
    if _answers(path):
        os.close(lock)
        raise SocketInUse(f"another process listens on {path}")
    return lock


def _answers(path: str) -> bool:
    if not Path(path).is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(path)
        except OSError:  # what a process left that has ended
            return False
    return True
