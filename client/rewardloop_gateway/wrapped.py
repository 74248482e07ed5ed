"""What is around every answer of the API: leave for other origins, and security headers."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware

from rewardloop_console.headers import ISOLATION, AsgiApp, with_headers

# A page of the API runs no script, and tells nobody where it was.
SECURITY_HEADERS = {
    **ISOLATION,
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "referrer-policy": "no-referrer",
}
_PREFLIGHT_S = 600


def wrapped(app: AsgiApp, origins: Sequence[str]) -> AsgiApp:
    """Return the app with CORS and the headers around it. The API reads no cookie, so none is allowed."""
    inner: AsgiApp = CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
        expose_headers=["retry-after"],
        allow_credentials=False,
        max_age=_PREFLIGHT_S,
    )
    return with_headers(inner, SECURITY_HEADERS)
