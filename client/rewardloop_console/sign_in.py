"""Signing in with a bearer token of the deployment, and signing out."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from rewardloop.formats.tokens import is_publishable
from rewardloop_client import RewardloopError, Unauthenticated
from rewardloop_console.door import SIGN_IN, Door, address_of, again_at, comes_from_elsewhere, page_to_go_to, refused
from rewardloop_console.navigation import PLACES
from rewardloop_console.refusals import Refusal, refusal_of, sentence_of
from rewardloop_console.rendering import render
from rewardloop_console.sessions import Session

_LONGEST_TOKEN = 4096


class SignIn:
    """The pages before a session and after it."""

    def __init__(self, door: Door, issuer: str) -> None:
        """``issuer`` is the address to which the page leads to sign in by OpenID Connect; empty for none."""
        self._door = door
        self._issuer = issuer

    async def show(self, request: Request) -> Response:
        """Show the form, or lead on who has signed in already."""
        where = request.query_params.get("next", "")
        key = self._door.key_in(request)
        if self._door.sessions.of(key):
            return RedirectResponse(page_to_go_to(where), 303)
        if comes_from_elsewhere(request):
            return again_at(address_of(request))
        try:
            session = await self._door.open_session()
        except RewardloopError as error:
            return refused(request, refusal_of(error))
        if session is None:
            return self._form(key or self._door.sessions.new_key(), where)
        return self._led_on(session, where)

    async def take(self, request: Request) -> Response:
        """Sign in by a token. The session has a new key, and an earlier session of this browser ends."""
        key = self._door.key_in(request)
        try:
            form = await self._door.own_form(request, key)
            token = form.get("token", "").strip()
            where = form.get("next", "")
            problem = _problem(token)
            if problem:
                return self._form(key, where, problem, 400)
            self._door.token.set(token)
            identity = await self._door.client.get_identity()
        except Unauthenticated as error:
            return self._form(key, where, sentence_of(error), 401)
        except Refusal as refusal:
            return refused(request, refusal)
        except RewardloopError as error:
            return refused(request, refusal_of(error))
        self._door.sessions.sign_out(key)
        return self._led_on(self._door.sign_in(token, identity), where)

    async def end(self, request: Request) -> Response:
        """Sign out. The browser gets a new key, and the old one is worth nothing."""
        key = self._door.key_in(request)
        try:
            await self._door.own_form(request, key)
        except Refusal as refusal:
            return refused(request, refusal)
        self._door.sessions.sign_out(key)
        response = RedirectResponse(SIGN_IN, 303)
        self._door.cookie.write(response, self._door.sessions.signed(self._door.sessions.new_key()))
        return response

    async def start(self, request: Request) -> Response:
        """Lead to the first page that the person sees, which also lets the own user in."""
        key = self._door.key_in(request)
        session = self._door.sessions.of(key)
        roles = session.identity.roles if session else frozenset()
        open_to = [place for place in PLACES if place.is_open_to(roles)]
        if session and not open_to:
            return refused(request, Refusal(403, "This token has none of the roles label, view and admin."))
        return RedirectResponse((open_to or PLACES)[0].path, 303)

    def _led_on(self, session: Session, where: str) -> Response:
        response = RedirectResponse(page_to_go_to(where), 303)
        self._door.cookie.write(response, self._door.sessions.signed(session.key))
        return response

    def _form(self, key: str, where: str, problem: str = "", status: int = 200) -> Response:
        """Return the page with the form, which belongs to the browser with this key."""
        token = self._door.sessions.form_token(key)
        page = render("sign_in.html", form_token=token, next=where, problem=problem, issuer=self._issuer)
        response = HTMLResponse(page, status)
        self._door.cookie.write(response, self._door.sessions.signed(key))
        return response


def _problem(token: str) -> str:
    """Return what is wrong with the form of a token, or ""."""
    if not token or len(token) > _LONGEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        return "This is no token. It is one word, as rewardloop token create has printed it."
    return "A publishable token gives feedback and nothing else." if is_publishable(token) else ""
