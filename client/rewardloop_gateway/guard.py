"""Looks at each request of the API before anything reads its body: with which token, from which page, how often.

A forged request of a foreign page has nothing to use: no cookie is read, a POST must say that it is JSON (which a
browser sends only after it has asked), and an ``Origin`` that is not ours is refused.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from rewardloop.formats.tokens import is_publishable
from rewardloop_console.headers import AsgiApp, Receive, Send
from rewardloop_gateway.answers import Problem
from rewardloop_gateway.caller import TOKEN, token_of
from rewardloop_gateway.rates import Rates

# A publishable token opens this alone; the services hold it to its generation.
PUBLISHABLE = ("POST", "/v1/feedback")


class Guard:
    """An ASGI app around another one, which it calls with the token of the request in `caller.TOKEN`.

    Args:
        app: The app.
        origins: Origins of pages that may call. A page of the same host may, too.
        rates: Bounds how often each token calls.
        needs_token: Refuse requests without a token, because the connection to the services has rights of its own.
    """

    def __init__(self, app: AsgiApp, *, origins: frozenset[str], rates: Rates, needs_token: bool = False) -> None:
        self._app = app
        self._origins = origins
        self._rates = rates
        self._needs_token = needs_token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        token = token_of(scope["headers"])
        problem = self._refusal(scope, token)
        if problem is not None:
            await problem.answer()(scope, receive, send)
            return
        TOKEN.set(token or "")
        await self._app(scope, receive, send)

    def _refusal(self, scope: MutableMapping[str, Any], token: str | None) -> Problem | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        own = f"{scope['scheme']}://{headers.get(b'host', '').lower()}"
        if origin is not None and origin not in self._origins and origin != own:
            return Problem(403, "WRONG_ORIGIN", "pages of this origin may not call (--cors-origins)")
        return self._refusal_of_token(scope, token) or _refusal_of_body(scope, headers)

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


def _refusal_of_body(scope: MutableMapping[str, Any], headers: dict[bytes, str]) -> Problem | None:
    if scope["method"] != "POST":
        return None
    kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return Problem(415, "NOT_JSON", "the Content-Type is not application/json")
    if headers.get(b"content-encoding", "identity").lower() != "identity":
        return Problem(415, "NOT_JSON", "a compressed body is not read")
    return None
