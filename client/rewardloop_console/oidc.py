"""Signing in by OpenID Connect: the authorization code flow with PKCE, state and nonce, which Authlib carries out.

A person gets the token of the first group that the settings name and the person's claim holds. So the services decide
by their own roles what the person may do, and no file of callers has to know anybody.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
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

from rewardloop.process.secret_files import read_secret
from rewardloop_client import RewardloopError
from rewardloop_console.cookies import Cookie
from rewardloop_console.door import Door, again_at, page_to_go_to, refused
from rewardloop_console.navigation import OIDC
from rewardloop_console.options import OidcOptions
from rewardloop_console.refusals import Refusal, refusal_of
from rewardloop_console.sessions import Sessions

log = structlog.get_logger()

_BACK = f"{OIDC}/back"
_LONGEST_S = 600.0
_TIMEOUT_S = 10.0
# An ID token is signed with a key of the issuer. A shared secret, or no signature, is not taken, whatever it offers.
_SIGNATURES = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
_NAMES = ("preferred_username", "name", "email", "sub")


@dataclass(frozen=True, slots=True)
class _Begun:
    """A sign-in that its issuer has not answered yet. The browser that began it keeps it, and this process nothing.

    State, nonce and verifier are derived from `text` by the secret of this process. So the state proves that the text
    is one that this process gave out.

    Attributes:
        text: A random word, when it began on the monotonic clock, and where to go then; for a cookie.
        state: What the issuer gives back.
        nonce: What the ID token must hold.
        verifier: The verifier of PKCE.
    """

    text: str
    state: str
    nonce: str
    verifier: str

    @classmethod
    def of(cls, text: str, sessions: Sessions) -> _Begun:
        """Return the sign-in of a cookie."""
        return cls(text, *(sessions.mac(f"oidc-{part}".encode(), text) for part in ("state", "nonce", "verifier")))

    @classmethod
    def now(cls, where: str, sessions: Sessions) -> _Begun:
        """Begin one."""
        parts = [secrets.token_urlsafe(32), time.monotonic(), where]
        return cls.of(urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("="), sessions)

    def where(self) -> str | None:
        """Return where to go then, or None if it began too long ago. `text` must be this process's own."""
        _, at, where = json.loads(urlsafe_b64decode(self.text + "=" * (-len(self.text) % 4)))
        return None if time.monotonic() - at > _LONGEST_S else str(where)


class OpenId:
    """Sends people to the issuer, and signs in who comes back."""

    def __init__(self, door: Door, options: OidcOptions, http: Mapping[str, Any] | None = None) -> None:
        """``http`` is for tests: more arguments of the HTTP client, such as a transport."""
        self._door = door
        self._options = options
        self._cookie = Cookie(f"{door.cookie.name}-oidc", door.cookie.is_secure, "lax", OIDC)
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
        """Lead to the issuer. The browser keeps what was begun, by which it is known when it comes back."""
        begun = _Begun.now(page_to_go_to(request.query_params.get("next", "")), self._door.sessions)
        try:
            await self._load_issuer()
            made = await self._app.create_authorization_url(
                self._options.url + _BACK, state=begun.state, nonce=begun.nonce, code_verifier=begun.verifier
            )
        except _FAILURES as error:
            return self._failed(request, error)
        response = RedirectResponse(made["url"], 303)
        self._cookie.write(response, begun.text)
        return response

    async def back(self, request: Request) -> Response:
        """Sign in who comes back from the issuer, if this browser began it and the ID token is good."""
        begun = _Begun.of(self._cookie.read(request), self._door.sessions)
        is_own = hmac.compare_digest(begun.state.encode(), request.query_params.get("state", "").encode())
        where = begun.where() if is_own else None
        if where is None:
            return refused(request, Refusal(403, "This sign-in was not begun here, or too long ago. Begin it again."))
        response = await self._come_back(request, begun, where)
        self._cookie.delete(response)
        return response

    async def _come_back(self, request: Request, begun: _Begun, where: str) -> Response:
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
        return await self._sign_in(request, dict(claims), where)

    async def _sign_in(self, request: Request, claims: Mapping[str, Any], where: str) -> Response:
        held = claims.get(self._options.claim)
        groups = held if isinstance(held, list) else [held]
        path = next((path for group, path in self._options.tokens.items() if group in groups), None)
        if path is None:
            return refused(request, Refusal(403, "You are in none of the groups that may use this console."))
        try:
            token = read_secret(path)
            self._door.token.set(token)
            identity = await self._door.client.get_identity()
        except OSError as error:
            log.error("cannot read the token of a group", path=str(path), why=error.strerror or str(error))
            return refused(request, Refusal(500, "The console has no token for your group. Its log has more."))
        except RewardloopError as error:
            return refused(request, refusal_of(error))
        person = next(str(claims[name]) for name in _NAMES if claims.get(name))
        self._door.sessions.sign_out(self._door.key_in(request))
        session = self._door.sessions.sign_in(token, identity, person, self._annotator_id(claims))
        # A redirect from here would count as the issuer's, and come without the cookie.
        response = again_at(where)
        self._door.cookie.write(response, self._door.sessions.signed(session.key))
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
