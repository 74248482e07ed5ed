"""Stands before every page: who asks, may they, and did a form come from this console's own page."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from rewardloop_client import AsyncRewardloopClient, Identity, RewardloopError, Unauthenticated
from rewardloop_console.cookies import Cookie
from rewardloop_console.forms import FORM_TOKEN, FORM_TOKEN_HEADER, Form, check_form_token, check_origin, read_form
from rewardloop_console.navigation import PREFIX
from rewardloop_console.refusals import Refusal, refusal_of
from rewardloop_console.rendering import render
from rewardloop_console.sessions import Session, Sessions
from rewardloop_console.visits import Path, Visit

SIGN_IN = f"{PREFIX}/sign-in"
# The services are asked again who a token is, so that a removed one does not stay signed in.
_IDENTITY_S = 60.0
_LONGEST_ADDRESS = 1024  # of a page to which signing in leads; a longer one loses its query


@dataclass(frozen=True, slots=True)
class Door:
    """Lets people into the pages.

    Attributes:
        sessions: Who has signed in.
        cookie: Carries the key of a session.
        client: Calls the services with the token that ``token`` holds.
        token: The token of the present request.
        own_person: The name of the person whom a console without callers signs in by itself.
    """

    sessions: Sessions
    cookie: Cookie
    client: AsyncRewardloopClient
    token: ContextVar[str]
    own_person: str

    def endpoint(self, path: Path) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of an address."""

        async def endpoint(request: Request) -> Response:
            try:
                return await self._answer(path, request)
            except Unauthenticated:
                self.sessions.sign_out(self.key_in(request))  # else the sign-in page would lead straight back here
                return self.to_sign_in(request)
            except Refusal as refusal:
                return refused(request, refusal)
            except RewardloopError as error:
                return refused(request, refusal_of(error))

        return endpoint

    async def _answer(self, path: Path, request: Request) -> Response:
        key = self.key_in(request)
        session = self.sessions.of(key)
        is_new = session is None
        if session is None and comes_from_elsewhere(request):
            return again_at(address_of(request))
        if session is None:
            session = await self.open_session() if request.method == "GET" else None
        if session is None:
            return self.to_sign_in(request)
        form = await self.own_form(request, key) if request.method == "POST" else Form({})
        self.token.set(session.token)
        session = await self._with_identity(session)
        if session.identity.roles.isdisjoint(path.needed):
            raise Refusal(403, f"This needs the role {' or '.join(sorted(path.needed))}.")
        visit = Visit(request, session, self.client, form, self.sessions.form_token(session.key), path.place)
        response = await path.answer(visit)
        if is_new:
            self.cookie.write(response, self.sessions.signed(session.key))
        return response

    def key_in(self, request: Request) -> str:
        """Return the key that the browser holds, or "" if this process has given it none."""
        return self.sessions.key_of(self.cookie.read(request)) or ""

    async def own_form(self, request: Request, key: str) -> Form:
        """Return the form of a POST. Raises Refusal if it is not from a page that this browser got here."""
        check_origin(request)
        form = await read_form(request)
        given = request.headers.get(FORM_TOKEN_HEADER) or form.get(FORM_TOKEN, "")
        check_form_token(given, bool(key) and self.sessions.is_form_token(key, given))
        return form

    async def open_session(self) -> Session | None:
        """Sign the machine's own user in if the services ask nobody for credentials. Raises RewardloopError."""
        self.token.set("")
        try:
            identity = await self.client.get_identity()
        except Unauthenticated:
            return None
        return self.sign_in("", identity) if identity.is_open else None

    def sign_in(self, token: str, identity: Identity) -> Session:
        """Begin the session of whoever shows a token, or of the own user without one."""
        person = identity.caller or self.own_person
        return self.sessions.sign_in(token, identity, person, person)

    async def _with_identity(self, session: Session) -> Session:
        """Return the session with roles that the services have confirmed. Raises Unauthenticated if it has ended."""
        if self.sessions.age_of_identity_s(session) < _IDENTITY_S:
            return session
        return self.sessions.identified(session, await self.client.get_identity())

    def to_sign_in(self, request: Request) -> Response:
        """Return the way to the sign-in page, and back to a page that somebody asked for."""
        where = SIGN_IN
        if request.method == "GET" and request.headers.get("hx-request") != "true":
            where += f"?next={quote(address_of(request), safe='/')}"
            return RedirectResponse(where, 303)
        return Response(status_code=401, headers={"hx-redirect": where})


def comes_from_elsewhere(request: Request) -> bool:
    """Return whether a link of another site has led here, so that the browser has kept its cookie back."""
    return request.method == "GET" and request.headers.get("sec-fetch-site") == "cross-site"


def address_of(request: Request) -> str:
    """Return the path of a request, with its query."""
    return f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path


def again_at(where: str) -> Response:
    """Return a page that asks for an address of the console, now from this site and so with the cookie."""
    return HTMLResponse(render("again.html", where=where))


def page_to_go_to(where: str) -> str:
    """Return where to go after signing in: a page of the console, never another site."""
    where = where if len(where) <= _LONGEST_ADDRESS else where.partition("?")[0][:_LONGEST_ADDRESS]
    is_page = where.startswith(f"{PREFIX}/") and "\\" not in where and where.isascii() and where.isprintable()
    return where if is_page and not where.startswith(SIGN_IN) else f"{PREFIX}/"


def refused(request: Request, refusal: Refusal) -> Response:
    """Return a refusal as a page, or as a notice on the page that asked."""
    template = "notice.html" if request.headers.get("hx-request") == "true" else "refused.html"
    again = {} if refusal.retry_after_s is None else {"retry-after": str(math.ceil(refusal.retry_after_s))}
    return HTMLResponse(render(template, message=refusal.message), refusal.status, again)
