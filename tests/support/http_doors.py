"""The HTTP door over the client's fake, called in this process without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from rewardloop_client import AsyncRewardloopClient
from rewardloop_client.fake import FakeRewardloop
from rewardloop_gateway.serving import app
from rewardloop_gateway.settings import GatewaySettings

URL = "http://127.0.0.1:50080"


@asynccontextmanager
async def door(client: AsyncRewardloopClient | FakeRewardloop, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the door's app."""
    behind = client.as_async() if isinstance(client, FakeRewardloop) else client
    transport = httpx2.ASGITransport(app(GatewaySettings(**settings), behind))
    async with httpx2.AsyncClient(transport=transport, base_url=URL) as http:
        yield http


def fields(reply: httpx2.Response) -> list[str]:
    """The fields that an answer says are wrong."""
    return [each["field"] for each in reply.json()["error"]["violations"]]
