"""Signing in by OpenID Connect: the authorization code flow with PKCE, state and nonce, which Authlib carries out.

A person gets the token of the first group that the settings name and the person's claim holds. So the services decide
by their own roles what the person may do, and no file of callers has to know anybody.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import structlog
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client.apps import StarletteOAuth2App
from joserfc.errors import JoseError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rewardloop_client import RewardloopError
from rewardloop_console.cookies import Cookie
from rewardloop_console.door import Door, again_at, page_to_go_to, refused
from rewardloop_console.navigation import OIDC
from rewardloop_console.options import OidcOptions
from rewardloop_console.refusals import Refusal, refusal_of

log = structlog.get_logger()

_BACK = f"{OIDC}/back"
_MOST_BEGUN = 1000
_LONGEST_S = 600.0
_TIMEOUT_S = 10.0
# An ID token is signed with a key of the issuer. A shared secret, or no signature, is not taken, whatever it offers.
_SIGNATURES = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
_NAMES = ("preferred_username", "name", "email", "sub")


@dataclass(frozen=True, slots=True)
class _Begun:
    """A sign-in that its issuer has not answered yet; `browser` is what the browser that began it holds."""

    browser: str
    nonce: str
    verifier: str
    where: str
    at: float


class OpenId:
    """Sends people to the issuer, and signs in who comes back."""

    def __init__(self, door: Door, options: OidcOptions, http: Mapping[str, Any] | None = None) -> None:
        """``http`` is for tests: more arguments of the HTTP client, such as a transport."""
        self._door = door
        self._options = options
        self._cookie = Cookie(f"{door.cookie.name}-oidc", door.cookie.is_secure, "lax", OIDC)
        self._begun: OrderedDict[str, _Begun] = OrderedDict()  # by state, the oldest first
        self._app = StarletteOAuth2App(
            None,
            name="rewardloop",
            client_id=options.client_id,
            client_secret=options.client_secret or None,
            server_metadata_url=f"{options.issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={
                "scope": "openid profile email",
                "code_challenge_method": "S256",
                "timeout": _TIMEOUT_S,
                **({} if options.client_secret else {"token_endpoint_auth_method": "none"}),
                **(http or {}),
            },
        )

    async def begin(self, request: Request) -> Response:
        """Lead to the issuer. The browser keeps a secret by which it is known when it comes back."""
        try:
            await self._load_issuer()
            made = await self._app.create_authorization_url(self._options.url + _BACK)
        except _FAILURES as error:
            return self._failed(request, error)
        browser = secrets.token_urlsafe(32)
        where = page_to_go_to(request.query_params.get("next", ""))
        self._begun[made["state"]] = _Begun(browser, made["nonce"], made["code_verifier"], where, time.monotonic())
        if len(self._begun) > _MOST_BEGUN:
            self._begun.popitem(last=False)
        response = RedirectResponse(made["url"], 303)
        self._cookie.write(response, browser)
        return response

    async def back(self, request: Request) -> Response:
        """Sign in who comes back from the issuer, if this browser began it and the ID token is good."""
        begun = self._begun.pop(request.query_params.get("state", ""), None)
        browser = self._cookie.read(request)
        is_known = begun is not None and hmac.compare_digest(begun.browser.encode(), browser.encode())
        if begun is None or not is_known or time.monotonic() - begun.at > _LONGEST_S:
            return refused(request, Refusal(403, "This sign-in was not begun here, or too long ago. Begin it again."))
        if said := request.query_params.get("error"):
            log.warning("sign-in refused by the issuer", error=said[:100])
            return refused(request, Refusal(403, "The issuer has not signed you in."))
        try:
            await self._load_issuer()
            token = await self._app.fetch_access_token(
                redirect_uri=self._options.url + _BACK,
                code=request.query_params.get("code", ""),
                code_verifier=begun.verifier,
            )
            claims = await self._app.parse_id_token(token, nonce=begun.nonce)
            if claims is None or not all(isinstance(claims[name], str) and claims[name] for name in ("iss", "sub")):
                raise ValueError("the reply has no ID token of a subject")
        except _FAILURES as error:
            return self._failed(request, error)
        return await self._sign_in(request, dict(claims), begun.where)

    async def _sign_in(self, request: Request, claims: Mapping[str, Any], where: str) -> Response:
        held = claims.get(self._options.claim)
        groups = held if isinstance(held, list) else [held]
        path = next((path for group, path in self._options.tokens.items() if group in groups), None)
        if path is None:
            return refused(request, Refusal(403, "You are in none of the groups that may use this console."))
        try:
            token = path.read_text("utf-8").strip()
            self._door.token.set(token)
            identity = await self._door.client.get_identity()
        except OSError:
            log.error("cannot read the token of a group", path=str(path))
            return refused(request, Refusal(500, "The console has no token for your group. Its log has more."))
        except RewardloopError as error:
            return refused(request, refusal_of(error))
        person = next(str(claims[name]) for name in _NAMES if claims.get(name))
        self._door.sessions.sign_out(self._door.key_in(request))
        session = self._door.sessions.sign_in(token, identity, person, self._annotator_id(claims))
        # A redirect from here would count as the issuer's, and come without the cookie.
        response = again_at(where)
        self._door.cookie.write(response, self._door.sessions.signed(session.key))
        self._cookie.delete(response)
        return response

    def _annotator_id(self, claims: Mapping[str, Any]) -> str:
        """Return an id that stays the same for a person and does not say who it is."""
        return "oidc-" + hashlib.sha256(f"{claims['iss']}\n{claims['sub']}".encode()).hexdigest()[:24]

    async def _load_issuer(self) -> None:
        """Read the issuer's addresses and keys once. Raises one of `_FAILURES`."""
        metadata = await self._app.load_server_metadata()
        if metadata.get("issuer", "").rstrip("/") != self._options.issuer.rstrip("/"):
            raise ValueError(f"the metadata are of {metadata.get('issuer')!r}")
        offered = metadata.get("id_token_signing_alg_values_supported", ["RS256"])
        metadata["id_token_signing_alg_values_supported"] = [each for each in offered if each in _SIGNATURES]

    def _failed(self, request: Request, error: Exception) -> Response:
        log.warning("sign-in failed", issuer=self._options.issuer, error=str(error)[:300])
        return refused(request, Refusal(502, "Signing in by the issuer failed. The log of the HTTP door has more."))


# What Authlib raises for a reply that cannot be had, read, verified or believed.
_FAILURES = (AuthlibBaseError, JoseError, httpx2.HTTPError, RuntimeError, ValueError, KeyError, TypeError)
