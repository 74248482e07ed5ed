"""Looks at each request before anything reads its body: who calls, from where, how often, and how much.

A forged request of a foreign page has nothing to use: no cookie is read, a POST must say that it is JSON (which a
browser sends only after it has asked), and an ``Origin`` or ``Host`` that is not ours is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from rewardloop.formats.tokens import is_publishable
from rewardloop.process.socket_owner import OwnCallers
from rewardloop_gateway.answers import Problem
from rewardloop_gateway.caller import TOKEN, token_of
from rewardloop_gateway.rates import Rates
from rewardloop_gateway.wrapped import AsgiApp, Message, Receive, Send

# A publishable token opens this alone; the services hold it to its generation.
PUBLISHABLE = ("POST", "/v1/feedback")


class Guard:
    """An ASGI app around another one, which it calls with the token of the request in `caller.TOKEN`.

    Args:
        app: The app.
        max_body_bytes: Most bytes of a body.
        hosts: Names of the ``Host`` header, without port; empty for all.
        origins: Origins of pages that may call. A page of the same host may, too.
        rates: Bounds how often each token calls.
        needs_token: Refuse requests without a token, because the connection to the services has rights of its own.
        own: Who may call on this machine; None for every user.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        max_body_bytes: int,
        hosts: frozenset[str],
        origins: frozenset[str],
        rates: Rates,
        needs_token: bool = False,
        own: OwnCallers | None = None,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._hosts = hosts
        self._origins = origins
        self._rates = rates
        self._needs_token = needs_token
        self._own = own

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        token = token_of(scope["headers"])
        problem = self._refusal(scope, token)
        if problem is not None:
            await problem.answer()(scope, receive, send)
            return
        TOKEN.set(token or "")
        await self._app(scope, _bounded(receive, self._max_body_bytes), send)

    def _refusal(self, scope: MutableMapping[str, Any], token: str | None) -> Problem | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._own is not None and not self._own.has(_peer(scope)):
            return Problem(403, "NOT_ALLOWED", "only the user who runs this process may call it (--own-user)")
        host = headers.get(b"host", "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and ":" in host else host
        if self._hosts and name not in self._hosts:
            return Problem(421, "WRONG_HOST", "this host name is not served here (--hosts)")
        origin = headers.get(b"origin")
        if origin is not None and origin not in self._origins and origin != f"{scope['scheme']}://{host}":
            return Problem(403, "WRONG_ORIGIN", "pages of this origin may not call (--cors-origins)")
        return self._refusal_of_token(scope, token) or self._refusal_of_body(scope, headers)

    def _refusal_of_token(self, scope: MutableMapping[str, Any], token: str | None) -> Problem | None:
        if token is None:
            return Problem(401, "WRONG_CREDENTIALS", "the Authorization header is no bearer token")
        if not token and self._needs_token and scope["path"] != "/healthz":
            return Problem(401, "NO_CREDENTIALS", "no bearer token came with the request")
        if is_publishable(token) and (scope["method"], scope["path"]) != PUBLISHABLE:
            return Problem(403, "NOT_ALLOWED", "a publishable token gives feedback and nothing else")
        if (wait_s := self._rates.wait_s(token)) > 0:
            return Problem(429, "QUOTA_SPENT", "this token has called too often", retry_after_s=wait_s)
        return None

    def _refusal_of_body(self, scope: MutableMapping[str, Any], headers: dict[bytes, str]) -> Problem | None:
        if scope["method"] != "POST":
            return None
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return Problem(415, "NOT_JSON", "the Content-Type is not application/json")
        if headers.get(b"content-encoding", "identity").lower() != "identity":
            return Problem(415, "NOT_JSON", "a compressed body is not read")
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._max_body_bytes:
            return Problem(413, "MESSAGE_TOO_LARGE", f"the body has more than {self._max_body_bytes} bytes")
        return None


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
    if not client:
        return "unix:"
    host, port = client
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
