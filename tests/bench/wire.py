"""gRPC's unary calls on a bare socket: a caller that costs next to nothing, beside which a server has its machine.

Frames are made ahead (HTTP/2, RFC 9113; headers literal and not indexed, RFC 7541), replies are told apart by whether a
message came, and what the server says in its headers is not read. For benchmarks: it trusts its server.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_INITIAL_WINDOW_SIZE = 4
_OUR_WINDOW = 2**30
_MOST = 16_384


@dataclass(slots=True)
class Ended:
    """Seconds of calls that got a message, and of those that got none: refused. They count from when a call was due."""

    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.answered_s) + len(self.refused_s)


class Wire:
    """One connection to one method. Not safe to use from two threads. ``ended``: of every call so far."""

    def __init__(self, address: str, method: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = b"".join(
            b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
            for name, value in (
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", method.encode()),
                (b":authority", address.encode()),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
            )
        )
        self._stream = 1
        self._window = 65_535  # what the server lets this connection send
        self._unread = b""
        self._began: dict[int, float] = {}
        self._has_message: set[int] = set()
        self._message = b""  # of the latest reply
        self.ended = Ended()
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 2**31 - 1)
        raise_window = struct.pack(">I", _OUR_WINDOW)
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, raise_window))
        self._credit = _OUR_WINDOW // 2

    def close(self) -> None:
        self._socket.close()

    def one(self, message: bytes) -> tuple[bytes, float]:
        """One call, alone: its reply and its seconds. Raises ConnectionError when it was refused."""
        self._send([message], time.perf_counter())
        refused = len(self.ended.refused_s)
        while self._began:
            self._receive(None)
        if len(self.ended.refused_s) > refused:
            raise ConnectionError("the call was refused")
        return self._message[5:], self.ended.answered_s[-1]

    def closed_loop(self, messages: Iterator[bytes], callers: int, seconds: float) -> int:
        """So many callers, each of which sends its next message when its last is answered; waits for the last ones.

        Returns how many calls ended within the time."""
        until, before = time.perf_counter() + seconds, len(self.ended)
        self._send([next(messages) for _ in range(callers)], time.perf_counter())
        in_time = 0
        while self._began:
            ended = self._receive(None)
            if (now := time.perf_counter()) < until:
                in_time = len(self.ended) - before
                self._send([next(messages) for _ in range(ended)], now)
        return in_time

    def at_rate(self, messages: Iterator[bytes], per_s: float, seconds: float, most: int) -> Ended:
        """Evenly, whatever becomes of the calls before; with ``most`` under way none is sent until one ends, and its
        wait counts. Returns what ended within the time, and waits for the rest."""
        started, sent, ended = time.perf_counter(), 0, self.ended
        self.ended = within = Ended()
        while (now := time.perf_counter()) < started + seconds:
            room = min(int((now - started) * per_s) + 1 - sent, most - len(self._began))
            for _ in range(room):
                self._send([next(messages)], started + sent / per_s)
                sent += 1
            self._receive(max(0.0, started + sent / per_s - time.perf_counter()))
        self.ended = ended
        while self._began:
            self._receive(None)
        return within

    def _send(self, messages: list[bytes], due: float) -> None:
        parts = []
        for message in messages:
            size = len(message) + 5
            assert size <= _MOST, "larger than a frame"
            while self._window < size:
                self._receive(None)
            self._window -= size
            body = struct.pack(">?I", False, len(message)) + message
            parts += [
                _frame(_HEADERS, _END_HEADERS, self._stream, self._headers),
                _frame(_DATA, _END_STREAM, self._stream, body),
            ]
            self._began[self._stream] = due
            self._stream += 2
        self._socket.sendall(b"".join(parts))

    def _receive(self, timeout: float | None) -> int:
        """What is there, waiting for it so long. Returns how many calls it ended."""
        if timeout is not None and not select.select([self._socket], [], [], timeout)[0]:
            return 0
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed the connection")
        data = self._unread + data
        now, at, ended, answer = time.perf_counter(), 0, 0, b""
        while at + 9 <= len(data):
            size = int.from_bytes(data[at : at + 3])
            if at + 9 + size > len(data):
                break
            kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9])
            body = data[at + 9 : at + 9 + size]
            at += 9 + size
            if kind == _DATA:
                self._has_message.add(stream)
                self._message = body
                self._credit -= size
            elif kind == _SETTINGS and not flags & _ACK:
                answer += _frame(_SETTINGS, _ACK, 0, b"")
            elif kind == _PING and not flags & _ACK:
                answer += _frame(_PING, _ACK, 0, body)
            elif kind == _WINDOW and stream == 0:
                self._window += int.from_bytes(body)
            elif kind == _GOAWAY:
                raise ConnectionError(f"the server said goodbye: {body[8:]!r}")
            if stream and (kind == _RST or (flags & _END_STREAM and kind in (_DATA, _HEADERS))):
                began = self._began.pop(stream, None)
                if began is not None:
                    ended += 1
                    has_message = stream in self._has_message
                    self._has_message.discard(stream)
                    (self.ended.answered_s if has_message else self.ended.refused_s).append(now - began)
        self._unread = data[at:]
        if self._credit <= 0:
            answer += _frame(_WINDOW, 0, 0, struct.pack(">I", _OUR_WINDOW // 2))
            self._credit += _OUR_WINDOW // 2
        if answer:
            self._socket.sendall(answer)
        return ended


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body
