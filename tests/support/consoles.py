"""The console over the client's fake: in this process without a socket, or on a port for a browser."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2
import uvicorn

from rewardloop_client.fake import FakeRewardloop
from rewardloop_gateway.serving import app
from rewardloop_gateway.settings import GatewaySettings
from support.http_doors import URL, door

FORM_TOKEN = re.compile(r'name="form_token" value="([0-9a-f]+)"|"x-form-token": "([0-9a-f]+)"')


class Browser:
    """Follows the console as a browser does: with cookies, an origin, and the token of the last page in each form."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http
        self.form_token = ""

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        """Get a page, and keep the token of its forms."""
        reply = await self.http.get(path, headers=headers)
        if found := FORM_TOKEN.search(reply.text):
            self.form_token = found[1] or found[2]
        return reply

    async def post(self, path: str, fields: dict[str, Any] | None = None, **headers: str) -> httpx2.Response:
        """Send a form of this console."""
        body = {"form_token": self.form_token, **(fields or {})}
        return await self.http.post(path, data=body, headers={"origin": URL, **headers})


@asynccontextmanager
async def console(fake: FakeRewardloop, **settings: Any) -> AsyncIterator[Browser]:
    """A browser in front of the console."""
    async with door(fake, **settings) as http:
        yield Browser(http)


@contextmanager
def console_on_a_port(fake: FakeRewardloop, **settings: Any) -> Iterator[str]:
    """Serve the HTTP door over the fake in a thread; yields its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    client = fake.as_async()
    config = uvicorn.Config(
        app(GatewaySettings(listen=f"127.0.0.1:{port}", **settings), client), lifespan="off", log_config=None, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
