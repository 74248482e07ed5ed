"""Looks first at each connection: whose process calls, and by which name. Then the console or the API answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from rewardloop.process.socket_owner import OwnCallers, peer_at
from rewardloop_console.headers import AsgiApp, Message, Receive, Send, with_headers
from rewardloop_console.navigation import PREFIX
from rewardloop_gateway.answers import Problem
from rewardloop_gateway.turns import FULL, RETRY_S, Places, Turn
from rewardloop_gateway.wrapped import SECURITY_HEADERS

_PROBE = "/healthz"
_MOST_PROBES = 16


class Entry:
    """An ASGI app in front of two.

    Args:
        api: Answers all addresses but the console's. It reads no cookie.
        console: Answers the addresses below `PREFIX`, and reads no token of a request. None: there is no console.
        max_body_bytes: Most bytes of a body.
        max_requests: Most requests in work. Probes have a few places of their own.
        hosts: Names of the ``Host`` header, without port; empty for all.
        own: Who may call on this machine; None for every user.
    """

    def __init__(
        self,
        api: AsgiApp,
        console: AsgiApp | None,
        *,
        max_body_bytes: int,
        max_requests: int,
        hosts: frozenset[str],
        own: OwnCallers | None = None,
    ) -> None:
        self._api = api
        self._console = console
        self._max_body_bytes = max_body_bytes
        self._places, self._probes = Places(max_requests), Places(_MOST_PROBES)
        self._hosts = hosts
        self._own = own

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        turn = Turn(self._probes if scope["path"] == _PROBE else self._places, receive, send)
        problem = self._refusal(scope)
        if problem is None and not _has_body(scope) and not turn.begin():
            problem = Problem(503, "TOO_MANY_REQUESTS", FULL, retry_after_s=RETRY_S)
        if problem is not None:
            await with_headers(problem.answer(), SECURITY_HEADERS)(scope, receive, send)
            return
        try:
            await self._answer(scope, turn.receive, turn.send)
        finally:
            turn.end()

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        is_page = scope["path"] == PREFIX or scope["path"].startswith(f"{PREFIX}/")
        answers = self._console if is_page and self._console is not None else self._api
        await answers(scope, _bounded(receive, self._max_body_bytes), send)

    def _refusal(self, scope: MutableMapping[str, Any]) -> Problem | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._own is not None and not self._own.has(_peer(scope)):
            return Problem(403, "NOT_ALLOWED", "only the user who runs this process may call it (--own-user)")
        host = headers.get(b"host", "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and ":" in host else host
        if self._hosts and name not in self._hosts:
            return Problem(421, "WRONG_HOST", "this host name is not served here (--hosts)")
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._max_body_bytes:
            return Problem(413, "MESSAGE_TOO_LARGE", f"the body has more than {self._max_body_bytes} bytes")
        return None


def _has_body(scope: MutableMapping[str, Any]) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _bounded(receive: Receive, most: int) -> Callable[[], Awaitable[Message]]:
    left = most

    async def read() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"the body has more than {most} bytes")  # FastAPI turns others into 400
        return message

    return read


def _peer(scope: MutableMapping[str, Any]) -> str:
    """Return the other end of the connection as gRPC writes it; without an address it is a Unix socket."""
    client = scope.get("client")
    return peer_at(*client) if client else "unix:"
