"""Runs an HTTP server of the standard library beside a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer


@contextmanager
def running(server: HTTPServer, poll_s: float) -> Iterator[str]:
    """The server's URL, while a thread answers. It looks every ``poll_s`` seconds whether the block has ended."""
    thread = threading.Thread(target=server.serve_forever, args=(poll_s,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
