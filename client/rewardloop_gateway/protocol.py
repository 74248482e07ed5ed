"""HTTP/1.1 as uvicorn speaks it, with a time for each thing that a client may keep the door waiting for.

| what the door waits for | for how long |
| --- | --- |
| the head of a request, from its first byte or from the connection | `head_s` |
| its body | `body_s`, and what its bytes take at `LEAST_BYTES_PER_S` |
| a client that reads on from an answer, or takes the rest of the last one | `send_s` |
| the next request | uvicorn's ``timeout_keep_alive`` |
"""

from __future__ import annotations

import asyncio
import enum
import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from rewardloop_gateway.answers import Problem
from rewardloop_gateway.connections import Connection, ConnectionLimits

LEAST_BYTES_PER_S = 16 * 1024
MOST_HEAD_BYTES = 64 * 1024
# A chunked body may take at most so many times the bytes that it carries: a chunk of one byte takes six.
_MOST_FRAMING = 8


class _Stage(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWER = enum.auto()
    NEXT = enum.auto()


class BoundedHttp(HttpToolsProtocol):
    """One connection. `look` must be called every now and then, and hangs up what has taken too long."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        connection: Connection,
        limits: ConnectionLimits,
        leave: Callable[[Connection], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``leave`` is called with the connection when it has ended."""
        super().__init__(config, server_state, {})
        self._connection = connection
        self._limits = limits
        self._leave = leave
        self._clock = clock
        self._stage = _Stage.HEAD
        self._since = clock()
        self._received = 0  # bytes of this stage
        self._stalled_since: float | None = None
        self._closing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for the first head."""
        super().connection_made(transport)
        self._connection.transport = transport
        self._enter(_Stage.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        super().connection_lost(exc)
        self._leave(self._connection)

    def data_received(self, data: bytes) -> None:
        """Read on, within the bounds of heads and bodies in bytes."""
        if self._stage is _Stage.NEXT:
            self._enter(_Stage.HEAD)
        self._received += len(data)
        super().data_received(data)
        if self._stage is _Stage.HEAD and self._received > MOST_HEAD_BYTES:
            self._refuse(431, "MESSAGE_TOO_LARGE", f"the head has more than {MOST_HEAD_BYTES} bytes")
        elif self._stage is _Stage.BODY and self._received > _MOST_FRAMING * self._limits.body_bytes + MOST_HEAD_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """Wait for the body."""
        super().on_headers_complete()
        self._enter(_Stage.BODY)

    def on_message_complete(self) -> None:
        """Wait for nothing but the app, unless it has answered already."""
        super().on_message_complete()
        self._enter(_Stage.NEXT if self.cycle.response_complete else _Stage.ANSWER)

    def on_response_complete(self) -> None:
        """Wait for the next request, if this one's body has come to its end and no other waits behind it."""
        super().on_response_complete()
        if self._stage is _Stage.ANSWER and self.cycle.response_complete:
            self._enter(_Stage.NEXT)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._stalled_since = self._connection.waiting_since = self._clock()

    def resume_writing(self) -> None:
        """Go on as before the client stopped to read."""
        super().resume_writing()
        self._stalled_since = None
        self._connection.waiting_since = None if self._stage is _Stage.ANSWER else self._since

    def look(self, elapsed_s: float) -> bool:
        """Hang up if the client has taken too long. Returns whether it has.

        Args:
            elapsed_s: Seconds since the last look. Those in which the door itself did not read are not counted.
        """
        now = self._clock()
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            return self._aborts(now - self._closing_since > self._limits.send_s)
        if self._stalled_since is not None:
            return self._aborts(now - self._stalled_since > self._limits.send_s)
        if self.flow.read_paused:
            self._since += elapsed_s
            return False
        if self._stage is _Stage.ANSWER or now - self._since <= self._allowed_s():
            return False
        is_answered = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if self._stage is _Stage.NEXT or is_answered or (self._stage is _Stage.HEAD and not self._received):
            self.transport.close()
        else:
            part = "head" if self._stage is _Stage.HEAD else "body"
            self._refuse(408, "TOO_SLOW", f"the {part} of the request did not come within {self._allowed_s():.3g} s")
        return True

    def _allowed_s(self) -> float:
        """Return the seconds that the present stage may take."""
        match self._stage:
            case _Stage.HEAD:
                return self._limits.head_s
            case _Stage.BODY:
                return self._limits.body_s + min(self._received, self._limits.body_bytes) / LEAST_BYTES_PER_S
            case _:
                return float(self.timeout_keep_alive)

    def _aborts(self, is_late: bool) -> bool:
        if is_late:
            self.transport.abort()
        return is_late

    def _enter(self, stage: _Stage) -> None:
        self._stage, self._since, self._received = stage, self._clock(), 0
        if self._stalled_since is None:
            self._connection.waiting_since = None if stage is _Stage.ANSWER else self._since

    def _refuse(self, status: int, reason: str, message: str) -> None:
        """Answer a request that never became whole, and hang up."""
        if self.transport.is_closing():
            return
        body = json.dumps(Problem(status, reason, message).body()).encode()
        head: dict[str, Any] = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {head[name]}" for name in head), "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()
