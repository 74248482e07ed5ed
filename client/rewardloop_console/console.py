"""Builds the console: its pages, its files, and the headers on each answer."""

from __future__ import annotations

import getpass
from contextvars import ContextVar
from pathlib import Path as Folder
from urllib.parse import urlsplit

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rewardloop_client import AsyncRewardloopClient
from rewardloop_console.cookies import Cookie
from rewardloop_console.door import SIGN_IN, Door, refused
from rewardloop_console.headers import CONSOLE, AsgiApp, with_headers
from rewardloop_console.navigation import OIDC, PREFIX
from rewardloop_console.options import ConsoleOptions, OidcOptions
from rewardloop_console.pages import compare, decide, label, people, watch
from rewardloop_console.refusals import Refusal
from rewardloop_console.sessions import Sessions
from rewardloop_console.sign_in import SignIn

log = structlog.get_logger()

_FILES = Folder(__file__).parent / "static"
_PATHS = (*label.PATHS, *watch.PATHS, *compare.PATHS, *decide.PATHS, *people.PATHS)
_WORDS = {
    404: "There is no such page.",
    405: "This page cannot be asked for in this way.",
    413: "The form is too large.",
    503: "Too many requests are in work. Try again in a second.",
}


def console(client: AsyncRewardloopClient, token: ContextVar[str], options: ConsoleOptions) -> AsgiApp:
    """Return the app for all addresses below ``/console``.

    Args:
        client: Calls the services with the token that ``token`` holds.
        token: The token of the present request, which the console sets from the session.
        options: How it is served.
    """
    cookie = Cookie.at(options.port, options.is_loopback)
    door = Door(Sessions(options.idle_s), cookie, client, token, _own_person())
    sign_in = SignIn(door, _host_of(options.oidc))
    app = Starlette(
        routes=[
            Route(PREFIX, sign_in.start),
            Route(f"{PREFIX}/", sign_in.start),
            Route(SIGN_IN, sign_in.show),
            Route(SIGN_IN, sign_in.take, methods=["POST"]),
            Route(f"{PREFIX}/sign-out", sign_in.end, methods=["POST"]),
            *([] if options.oidc is None else _oidc_routes(door, options.oidc)),
            *(Route(PREFIX + path.path, door.endpoint(path), methods=[path.method]) for path in _PATHS),
            Mount(f"{PREFIX}/static", with_headers(StaticFiles(directory=_FILES), {"cache-control": "no-cache"})),
        ],
        exception_handlers={HTTPException: _no_page, Exception: _bug},
    )
    return with_headers(app, CONSOLE)


async def _no_page(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return refused(request, Refusal(status, _WORDS.get(status, "This request cannot be answered.")))


async def _bug(request: Request, error: Exception) -> Response:
    log.error("request failed", path=request.url.path, exc_info=error)
    return refused(request, Refusal(500, "This is a bug. The log of the HTTP door has more."))


def _oidc_routes(door: Door, options: OidcOptions) -> list[Route]:
    # Imported here: only who signs in so needs Authlib (the extra oidc).
    from rewardloop_console.oidc import OpenId

    open_id = OpenId(door, options)
    return [Route(OIDC, open_id.begin), Route(f"{OIDC}/back", open_id.back)]


def _host_of(oidc: OidcOptions | None) -> str:
    return "" if oidc is None else urlsplit(oidc.issuer).netloc


def _own_person() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "own-user"
