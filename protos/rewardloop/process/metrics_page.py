"""The Prometheus page of a process, within bounds: few connections at once, and each for a short time only."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

MOST_CONNECTIONS = 8
_MOST_S = 10.0  # for a whole request with its reply


class CannotListen(OSError):
    """Raised when the page's address cannot be listened on."""


def serve_metrics(port: int, host: str, registry: CollectorRegistry) -> Callable[[], None]:
    """Serve the page in threads of the background, and return what ends it.

    Args:
        port: The port. 0 serves no page.
        host: The address to listen on.
        registry: What the page shows.

    Raises:
        CannotListen: If the address is taken or is none of this machine.
    """
    if not port:
        return lambda: None
    try:
        server = _Server((host, port), _Handler)
    except (OSError, OverflowError) as error:
        raise CannotListen(f"cannot listen on {host}:{port} for metrics: {error}") from error
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def end() -> None:
        server.shutdown()
        server.server_close()

    return end


class _Handler(WSGIRequestHandler):
    timeout = 5.0  # of one read

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the page is read every few seconds."""


class _Server(WSGIServer):
    """Handles each connection in a thread of its own.

    If there are too many, the oldest one is closed, so that a scraper is answered beside connections that say nothing.
    """

    request_queue_size = MOST_CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._open: dict[socket.socket, float] = {}  # in the order of their arrival
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._make_room()
        with self._lock:
            self._open[request] = time.monotonic()
        threading.Thread(target=self._handle, args=(request, client_address), daemon=True).start()

    def service_actions(self) -> None:
        """Close the connections that have lasted too long. The server calls this twice a second."""
        oldest = time.monotonic() - _MOST_S
        with self._lock:
            late = [request for request, since in self._open.items() if since < oldest]
        for request in late:
            _close(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that broke off."""

    def _make_room(self) -> None:
        with self._lock:
            first = next(iter(self._open)) if len(self._open) >= MOST_CONNECTIONS else None
            self._open.pop(first, None)  # type: ignore[arg-type]  # None is no key
        if first is not None:
            _close(first)

    def _handle(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # a caller can break off in any way, and nothing else depends on its page
            self.handle_error(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)
            self.shutdown_request(request)


def _close(connection: socket.socket) -> None:
    """End the connection, so that the thread that reads from it goes on and closes it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # its thread has closed it
        return
