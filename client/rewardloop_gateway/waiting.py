"""Ends a call once nobody waits for its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from rewardloop_gateway.answers import Problem

T = TypeVar("T")


async def while_wanted(request: Request, call: Coroutine[Any, Any, T]) -> T:
    """Return the call's result. If the caller goes away first, cancel it. Raises Problem then, and what it raises."""
    working = asyncio.ensure_future(call)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Problem(499, "CANCELLED", "the caller went away")
        return working.result()
    finally:
        gone.cancel()
        working.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
