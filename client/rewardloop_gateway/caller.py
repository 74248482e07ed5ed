"""The credentials of the present request, which go to the services unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

_SCHEME = b"bearer "

TOKEN: ContextVar[str] = ContextVar("token", default="")


def bearer() -> str:
    """Return the present request's token, or "" if it has none."""
    return TOKEN.get()


def token_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the bearer token of a request; "" if it has none, None if the header is no bearer token in ASCII."""
    for name, value in headers:
        if name == b"authorization":
            token = value[len(_SCHEME) :].strip()
            if value[: len(_SCHEME)].lower() != _SCHEME or not token or not token.isascii() or b" " in token:
                return None
            return token.decode("ascii") if token.decode("ascii").isprintable() else None
    return ""
