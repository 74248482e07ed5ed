"""uvicorn, on which vLLM and SGLang serve, keeps a connection without requests, and closes it when it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import uvicorn
from support.processes import free_port

from rewardloop_server.pooling.idle_connection import IdleConnection


async def answers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_a_connection_without_requests_lasts_as_long_as_the_server() -> None:
    port = free_port()
    settings = uvicorn.Config(answers, port=port, timeout_keep_alive=1, lifespan="off", log_level="error")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)
        closed = asyncio.Event()
        connection = await IdleConnection.to(f"http://127.0.0.1:{port}", closed.set)
        await asyncio.sleep(2.5)
        assert connection.is_open
        assert not closed.is_set()
        before = time.monotonic()
        server.should_exit = True
        async with asyncio.timeout(5):
            await closed.wait()
        assert time.monotonic() - before < 2
        assert not connection.is_open
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join)
    with pytest.raises(OSError, match=str(port)):
        await IdleConnection.to(f"http://127.0.0.1:{port}", closed.set)


async def test_a_connection_that_is_closed_here_tells_nobody() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        closed = asyncio.Event()
        port = server.sockets[0].getsockname()[1]
        connection = await IdleConnection.to(f"http://127.0.0.1:{port}", closed.set)
        connection.close()
        await asyncio.sleep(0.1)
        assert not closed.is_set()
