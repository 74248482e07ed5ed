"""Connections whose owner is another user of this machine."""

from __future__ import annotations

import ctypes
import os
import socket

import pytest

ANOTHER = 65_534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can open a socket as another user")


def another_users_socket(port: int) -> socket.socket:
    """A connection to the port whose owner is another user."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(ANOTHER)
    try:
        made = socket.socket()
    finally:
        libc.setfsuid(0)
    made.connect(("127.0.0.1", port))
    made.setblocking(False)
    return made
