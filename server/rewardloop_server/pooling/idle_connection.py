"""A connection to a server on which nothing is sent. Its end says that the server may have been started again.

The system of a process that ends closes its connections at once, so this is known before the process can have a
successor. A machine that vanishes closes none; then the system here asks for a sign of life.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

_CONNECT_S = 1.0
# Seconds of silence before the system asks for a sign of life, seconds between two questions, and how many of these may
# go unanswered.
_SIGNS = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class IdleConnection(asyncio.Protocol):
    """One connection.

    Args:
        on_closed: Called once when it is closed by anybody but `close`.
    """

    def __init__(self, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._began = time.monotonic()
        self.is_open = True

    @classmethod
    async def to(cls, url: str, on_closed: Callable[[], None]) -> IdleConnection:
        """Connect to the URL's host. Raises OSError, or TimeoutError after a second."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_secret = parts.scheme == "https"
        connection = cls(on_closed)
        async with asyncio.timeout(_CONNECT_S):
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                host,
                parts.port or (443 if is_secret else 80),
                ssl=ssl.create_default_context() if is_secret else None,
            )
        return connection

    @property
    def age_s(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self._began

    def close(self) -> None:
        """Close it."""
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        link = transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _SIGNS.items():
            if hasattr(socket, name):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_open:
            self.is_open = False
            self._on_closed()
