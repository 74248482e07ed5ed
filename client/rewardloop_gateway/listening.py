"""Takes connections on the door's port: whose each one is, whether there is room, and how long it may wait."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

import structlog
import uvicorn

from rewardloop.process.socket_owner import OwnCallers, peer_at
from rewardloop_gateway.connections import STRANGERS, Connection, ConnectionLimits, Connections, holder_of
from rewardloop_gateway.protocol import BoundedHttp

log = structlog.get_logger()

_AT_ONCE = 64  # connections that are taken before the loop does something else
_AGAIN_S = 0.1  # after the process has run out of file descriptors
_LOOKS = 5  # ticks of uvicorn, ten a second, from look to look
_LOG_S = 10.0


class DoorServer(uvicorn.Server):
    """uvicorn's server, which takes the connections itself, before TLS and before HTTP."""

    def __init__(
        self,
        config: uvicorn.Config,
        listening: socket.socket,
        limits: ConnectionLimits,
        own: OwnCallers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The server closes ``listening``. With ``own``, other users of this machine get a few connections alone."""
        super().__init__(config)
        self._listening = listening
        self._limits = limits
        self._own = own
        self._clock = clock
        self._table = Connections(limits, clock)
        self._opening: set[asyncio.Task[None]] = set()
        self._looked = clock()
        self._logged = clock()
        self._late = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start without a socket of uvicorn's own, and listen."""
        await super().startup(sockets=[])
        self._listening.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listening.fileno(), self._take)

    async def on_tick(self, counter: int) -> bool:
        """Look at the connections twice a second."""
        if counter % _LOOKS == 0:
            self._look()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and finish those that are in work."""
        asyncio.get_running_loop().remove_reader(self._listening.fileno())
        self._listening.close()
        for task in self._opening:
            task.cancel()
        await super().shutdown(sockets)

    def _take(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no file descriptor or no memory is left
                self._pause(error)
                return
            sock.setblocking(False)
            connection = self._table.admit(self._holder(*address[:2]), sock)
            if connection is None:
                sock.close()
                continue
            task = asyncio.ensure_future(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _pause(self, error: OSError) -> None:
        """Give a place back, and listen again a little later. Until then the connections wait in the kernel."""
        has_room = self._table.make_room()
        log.warning("cannot accept", error=error.strerror, connections=len(self._table), hung_up=has_room)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listening.fileno())
        loop.call_later(_AGAIN_S, self._listen_again)

    def _listen_again(self) -> None:
        if self._listening.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listening.fileno(), self._take)

    def _holder(self, host: str, port: int) -> str:
        is_own = self._own is None or self._own.has(peer_at(host, port))
        return holder_of(host) if is_own else STRANGERS

    async def _open(self, connection: Connection) -> None:
        context = self.config.ssl
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: BoundedHttp(
                    self.config, self.server_state, connection, self._limits, self._table.leave, self._clock
                ),
                connection.socket,
                ssl=context,
                ssl_handshake_timeout=self._limits.head_s if context else None,
            )
        except (OSError, asyncio.CancelledError):  # the client went away, spoke no TLS, or was too slow
            self._table.leave(connection)
            with contextlib.suppress(OSError):
                connection.socket.close()

    def _look(self) -> None:
        now = self._clock()
        elapsed_s, self._looked = now - self._looked, now
        for each in list(self.server_state.connections):
            if isinstance(each, BoundedHttp):
                self._late += each.look(elapsed_s)
        found = {"refused": self._table.refused, "displaced": self._table.displaced, "too_slow": self._late}
        if any(found.values()) and now - self._logged >= _LOG_S:
            log.warning("connections hung up", open=len(self._table), **found)
            self._logged = now
            self._table.refused = self._table.displaced = self._late = 0
