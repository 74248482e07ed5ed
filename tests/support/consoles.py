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
from google.protobuf.message import Message

from rewardloop.formats.tokens import new_token
from rewardloop_client import AsyncRewardloopClient, Identity, NoCredentials, NotAllowed, WrongCredentials
from rewardloop_client.fake import FakeRewardloop
from rewardloop_gateway.caller import TOKEN
from rewardloop_gateway.serving import server
from rewardloop_gateway.settings import GatewaySettings
from rewardloop_server.doors.roles import ALLOWED
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
        """Send a form of this console. A field that is None is left out."""
        body = {"form_token": self.form_token, **(fields or {})}
        body = {name: value for name, value in body.items() if value is not None}
        return await self.http.post(path, data=body, headers={"origin": URL, **headers})

    async def sign_in(self, token: str) -> httpx2.Response:
        """Sign in by the form."""
        await self.get("/console/sign-in")
        return await self.post("/console/sign-in", {"token": token, "next": ""})


@asynccontextmanager
async def console(fake: AsyncRewardloopClient | FakeRewardloop, **settings: Any) -> AsyncIterator[Browser]:
    """A browser in front of the console."""
    async with door(fake, **settings) as http:
        yield Browser(http)


@contextmanager
def console_on_a_port(fake: FakeRewardloop, **settings: Any) -> Iterator[str]:
    """Serve the HTTP door over the fake in a thread; yields its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    serving = server(GatewaySettings(listen=f"127.0.0.1:{port}", **settings), fake.as_async(), listening)
    thread = threading.Thread(target=asyncio.run, args=(serving.serve(),))
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serving.should_exit = True
        thread.join(30)


class GuardedRewardloop(FakeRewardloop):
    """A fake that asks for tokens, and holds each call to the roles of its token as the services do."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, Identity] = {}

    def add(self, caller: str, *roles: str) -> str:
        """Add a caller with roles; returns its token."""
        token = new_token()
        self.tokens[token] = Identity(caller, frozenset(roles), False)
        return token

    def _answer(self, path: str, request: Message) -> Message:
        token = TOKEN.get()
        if not token:
            raise NoCredentials("no bearer token came with the call")
        if token not in self.tokens:
            raise WrongCredentials("the token is not known here")
        self.identity = self.tokens[token]
        if path in ALLOWED and self.identity.roles.isdisjoint(ALLOWED[path]):
            raise NotAllowed("no role of this caller allows this method")
        return super()._answer(path, request)
