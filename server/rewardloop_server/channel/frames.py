"""frames: what one process sends to another over a Unix socket, many of them in one write.

A frame is a header and a payload. The header has the payload's length (4 bytes), the kind and the engine's state (one
byte each), and a number that a request and its answer share (8 bytes), little-endian.
"""

from __future__ import annotations

import asyncio
import struct
from abc import ABC, abstractmethod
from enum import IntEnum
from typing import cast

_HEADER = struct.Struct("<IBBQ")


class Kind(IntEnum):
    """The kinds of frames. Fronts send the first six, and the engine the others."""

    RESERVE = 1  # room for a group, until RELEASE
    RELEASE = 2
    SCORE = 3  # a group
    CANCEL = 4  # nobody waits for the group any more
    HOLD = 5  # keep a version in memory, until LET_GO of its handle or the end of the connection
    LET_GO = 6
    GRANTED = 7
    SCORED = 8
    HELD = 9
    FAILED = 10
    STATE = 11
    AWAY = 12  # whether the server is away that runs the version of this handle; sent when that changes


class FrameProtocol(asyncio.Protocol, ABC):
    """One end of a connection. What is sent in one turn of the event loop goes out in one write.

    Subclasses take frames in `received`, and learn in `ended` that none will follow.
    """

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._out: list[bytes] = []
        self._rest = bytearray()
        self._needed = _HEADER.size

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None

    @abstractmethod
    def received(self, kind: int, state: int, number: int, payload: bytes) -> None:
        """Take a frame."""

    @abstractmethod
    def ended(self) -> None:
        """Note that the connection is lost."""

    def send(self, kind: Kind, number: int, payload: bytes = b"", state: int = 0) -> None:
        """Send a frame, unless the connection is lost."""
        if self._transport is None:
            return
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(_HEADER.pack(len(payload), kind, state, number))
        self._out.append(payload)

    def hang_up(self) -> None:
        """Close the connection after what was sent."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._out.clear()
        self.ended()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data, self._rest = bytes(self._rest), bytearray()
        start, end, header = 0, len(data), _HEADER.size
        while end - start >= header:
            length, kind, state, number = _HEADER.unpack_from(data, start)
            if end - start < header + length:
                self._needed = header + length
                self._rest += data[start:]
                return
            start += header + length
            self.received(kind, state, number, data[start - length : start])
        if start < end:
            self._needed = header
            self._rest += data[start:]

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(b"".join(out))
