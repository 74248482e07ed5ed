"""A TCP proxy that does to a connection what networks do: delay, cut, swallow, garble, throttle."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType


@dataclass(frozen=True)
class Toxic:
    """What happens to the bytes that the upstream answers; the default: nothing.

    ``latency_s``: each piece comes so much later. ``swallow``: connections open, and no byte passes either way.
    ``garbage``: answers are replaced by noise. ``bytes_a_second``: no faster than that. ``cut_after``: a connection is
    reset after so many bytes of answers, which may be in the middle of one. ``half_close``: the answering side says
    that it is done after its first answer.
    """

    latency_s: float = 0.0
    swallow: bool = False
    garbage: bytes = b""
    bytes_a_second: float = 0.0
    cut_after: int = -1
    half_close: bool = False


class TcpProxy:
    """Listens on a port of 127.0.0.1 and passes connections on to ``upstream``, another port there."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.toxic = Toxic()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0
        self.open()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.refuse()

    def open(self) -> None:
        """Accept connections, on the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Close the port and every connection."""
        if self._listener is not None:
            # A thread that waits in accept() would keep the port open.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for each in sockets:
            _reset(each)

    def heal(self) -> None:
        """No harm from now on, to new connections."""
        self.toxic = Toxic()
        self.cut()
        if self._listener is None:
            self.open()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream), timeout=5)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                toxic = self.toxic
                if toxic.swallow:
                    continue
                if is_answer:
                    if toxic.latency_s:
                        time.sleep(toxic.latency_s)
                    if toxic.bytes_a_second:
                        time.sleep(len(data) / toxic.bytes_a_second)
                    if toxic.garbage:
                        data = toxic.garbage
                    if 0 <= toxic.cut_after <= passed + len(data):
                        target.sendall(data[: toxic.cut_after - passed])
                        break
                target.sendall(data)
                passed += len(data)
                if is_answer and toxic.half_close:
                    target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # either side is gone: so is the other then
        with self._lock:
            self._sockets -= {source, target}
        _reset(source)
        _reset(target)


def _reset(connection: socket.socket) -> None:
    """Close at once; what was not read yet at the other end is lost, as when a cable is cut."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed already
    connection.close()
