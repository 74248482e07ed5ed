"""The security headers of answers to browsers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# A browser must not guess types, frame a page, or keep an answer, and other sites must not read or hold one.
ISOLATION = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
# Scripts, styles and images come from this origin's files alone. With another referrer policy than same-origin a form
# would be posted with the origin "null", and could not be told from a foreign page's.
CONSOLE = {
    **ISOLATION,
    "content-security-policy": "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def with_headers(app: AsgiApp, headers: Mapping[str, str]) -> AsgiApp:
    """Return the app with these headers on each answer that does not set them itself."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def around(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                names = {bytes(name).lower() for name, _ in own}
                message["headers"] = [*own, *(pair for pair in raw if pair[0] not in names)]
            await send(message)

        await app(scope, receive, add if scope["type"] == "http" else send)

    return around
