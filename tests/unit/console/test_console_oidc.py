"""Signing in by OpenID Connect, against an issuer in this process that follows the standard or breaks it."""

from __future__ import annotations

import json
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from support.consoles import Browser, GuardedRewardloop
from support.http_doors import URL

from rewardloop_client import NewTask
from rewardloop_console.console import console
from rewardloop_console.oidc import OpenId
from rewardloop_console.options import ConsoleOptions, OidcOptions
from rewardloop_gateway.caller import TOKEN
from rewardloop_gateway.settings import GatewaySettings

ISSUER = "https://issuer.example"
KEY = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"})
OTHER_KEY = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"})


class Issuer:
    """Answers the console's calls. Its attributes are what a test breaks."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {"groups": ["labellers"], "preferred_username": "Anna", "sub": "s-1"}
        self.metadata: dict[str, Any] = {}
        self.key = KEY
        self.algorithm = "RS256"
        self.verifier = ""
        self.challenge = ""
        self.nonce = ""

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        match request.url.path:
            case "/.well-known/openid-configuration":
                known = {name: f"{ISSUER}/{name}" for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")}
                algorithms = {"id_token_signing_alg_values_supported": ["RS256", "HS256", "none"]}
                return httpx2.Response(200, json={"issuer": ISSUER, **known, **algorithms, **self.metadata})
            case "/jwks_uri":
                return httpx2.Response(200, json={"keys": [KEY.as_dict(private=False)]})
            case "/token_endpoint":
                form = parse_qs(request.content.decode())
                self.verifier = form["code_verifier"][0]
                id_token = self._id_token()
                return httpx2.Response(200, json={"access_token": "a", "token_type": "Bearer", "id_token": id_token})
        return httpx2.Response(404)

    def take_in(self, url: str) -> str:
        """Sign somebody in at the issuer; returns the address to which it leads back."""
        asked = parse_qs(urlsplit(url).query)
        self.nonce, self.challenge = asked["nonce"][0], asked["code_challenge"][0]
        assert asked["code_challenge_method"] == ["S256"]
        return f"{asked['redirect_uri'][0]}?code=c&state={asked['state'][0]}".removeprefix(URL)

    def _id_token(self) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": "console", "iat": now, "exp": now + 60, "nonce": self.nonce, **self.claims}
        if self.algorithm == "none":
            parts = (json.dumps({"alg": "none"}), json.dumps(claims))
            return ".".join(urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts) + "."
        return jwt.encode({"alg": self.algorithm, "kid": "k1"}, claims, self.key)


class Visitor:
    """A browser in front of a console whose issuer is in this process."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake = GuardedRewardloop()
        self.issuer = Issuer()
        paths = {}
        for group, role in (("operators", "admin"), ("labellers", "label")):
            paths[group] = directory / f"{group}.token"
            paths[group].write_text(self.fake.add(group, role) + "\n")
        options = OidcOptions(ISSUER, "console", "", URL, "groups", paths)
        transport = {"transport": httpx2.MockTransport(self.issuer.answer)}
        monkeypatch.setattr("rewardloop_console.oidc.OpenId", lambda door, oidc: OpenId(door, oidc, transport))
        app = console(self.fake.as_async(), TOKEN, ConsoleOptions(50080, True, 600, options))
        self.browser = Browser(httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=URL))

    async def begin(self) -> str:
        """Begin to sign in; returns the address of the issuer's page."""
        return str((await self.browser.get("/console/oidc?next=/console/label")).headers["location"])

    async def sign_in(self) -> httpx2.Response:
        """Sign in from the beginning to the end."""
        return await self.browser.get(self.issuer.take_in(await self.begin()))


@pytest.fixture
def visitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Visitor:
    return Visitor(tmp_path, monkeypatch)


async def test_the_first_group_of_a_person_gives_its_token_and_a_name_that_is_none(visitor: Visitor) -> None:
    reply = await visitor.sign_in()
    assert reply.status_code == 200
    assert 'content="0; url=/console/label"' in reply.text
    page = await visitor.browser.get("/console/label")
    assert "Anna" in page.text
    assert (await visitor.browser.get("/console/decide")).status_code == 403
    challenge = urlsafe_b64encode(sha256(visitor.issuer.verifier.encode()).digest()).decode().rstrip("=")
    assert challenge == visitor.issuer.challenge
    assert "data-person" not in page.text
    assert "s-1" not in page.text


async def test_the_order_of_the_setting_decides_between_several_groups(visitor: Visitor) -> None:
    visitor.issuer.claims["groups"] = ["labellers", "operators"]
    await visitor.sign_in()
    assert (await visitor.browser.get("/console/decide")).status_code == 200


@pytest.mark.parametrize("groups", [[], ["others"], "other", None])
async def test_who_is_in_no_group_is_not_signed_in(visitor: Visitor, groups: Any) -> None:
    visitor.issuer.claims["groups"] = groups
    assert (await visitor.sign_in()).status_code == 403
    assert (await visitor.browser.get("/console/label")).status_code == 303


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another"},
        {"iss": "https://evil.example"},
        {"exp": 1},
        {"nonce": "another"},
        {"sub": None},
    ],
)
async def test_an_id_token_for_others_signs_nobody_in(visitor: Visitor, claims: dict[str, Any]) -> None:
    visitor.issuer.claims |= claims
    assert (await visitor.sign_in()).status_code == 502
    assert (await visitor.browser.get("/console/label")).status_code == 303


@pytest.mark.parametrize("how", ["another key", "none", "metadata of another"])
async def test_a_forged_id_token_signs_nobody_in(visitor: Visitor, how: str) -> None:
    if how == "another key":
        visitor.issuer.key = OTHER_KEY
    elif how == "none":
        visitor.issuer.algorithm = "none"
    else:
        visitor.issuer.metadata["issuer"] = "https://evil.example"
    reply = await visitor.browser.get("/console/oidc")
    if reply.status_code == 303:
        reply = await visitor.browser.get(visitor.issuer.take_in(reply.headers["location"]))
    assert reply.status_code == 502
    assert (await visitor.browser.get("/console/label")).status_code == 303


async def test_a_sign_in_that_another_browser_began_is_refused(visitor: Visitor) -> None:
    back = visitor.issuer.take_in(await visitor.begin())
    visitor.browser.http.cookies.clear()
    assert (await visitor.browser.get(back)).status_code == 403
    assert (await visitor.browser.get(back.replace("state=", "state=x"))).status_code == 403


async def test_any_number_of_sign_ins_that_others_begin_ends_nobodys(visitor: Visitor) -> None:
    back = visitor.issuer.take_in(await visitor.begin())
    stranger = httpx2.AsyncClient(transport=visitor.browser.http._transport, base_url=URL)
    for _ in range(1_100):
        assert (await stranger.get("/console/oidc")).status_code == 303
    assert (await visitor.browser.get(back)).status_code == 200


async def test_what_a_browser_keeps_of_a_sign_in_cannot_be_made_up(visitor: Visitor) -> None:
    back = visitor.issuer.take_in(await visitor.begin())
    (cookie,) = (each for each in visitor.browser.http.cookies.jar if each.name.endswith("-oidc"))
    assert cookie.value is not None
    parts = json.loads(urlsafe_b64decode(cookie.value + "=="))
    forged = urlsafe_b64encode(json.dumps([parts[0], parts[1] + 1e9, parts[2]]).encode()).decode().rstrip("=")
    for value in (forged, cookie.value[:-1], "", "é", "x" * 4000):
        visitor.browser.http.cookies.clear()
        headers = {"cookie": f"{cookie.name}={value}".encode()}
        assert (await visitor.browser.http.get(back, headers=headers)).status_code == 403


async def test_a_sign_in_that_took_too_long_is_begun_again(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    back = visitor.issuer.take_in(await visitor.begin())
    now = time.monotonic()
    monkeypatch.setattr("rewardloop_console.oidc.time.monotonic", lambda: now + 601)
    assert (await visitor.browser.get(back)).status_code == 403


async def test_signing_in_leads_to_the_page_with_its_query(visitor: Visitor) -> None:
    asked = await visitor.browser.get("/console/watch?model=reward&page=2")
    assert asked.headers["location"] == "/console/sign-in?next=/console/watch%3Fmodel%3Dreward%26page%3D2"
    form = await visitor.browser.get(asked.headers["location"])
    (where,) = re.findall(r'href="(/console/oidc[^"]*)"', form.text)
    visitor.issuer.claims["groups"] = ["operators"]
    begun = str((await visitor.browser.get(unescape(where))).headers["location"])
    reply = await visitor.browser.get(visitor.issuer.take_in(begun))
    assert 'content="0; url=/console/watch?model=reward&amp;page=2"' in reply.text


async def test_a_way_back_is_good_once(visitor: Visitor) -> None:
    back = visitor.issuer.take_in(await visitor.begin())
    assert (await visitor.browser.get(back)).status_code == 200
    assert (await visitor.browser.get(back)).status_code == 403


async def test_two_people_of_one_group_are_two_labellers(visitor: Visitor) -> None:
    TOKEN.set(visitor.fake.add("importer", "admin"))
    visitor.fake.labelling.add_tasks("shop", [NewTask(("choice",), "How?", ("a", "b"), overlap=9)], import_id="i")
    seen = set()
    for subject in ("s-1", "s-2", "s-1"):
        visitor.issuer.claims["sub"] = subject
        await visitor.sign_in()
        page = await visitor.browser.get("/console/label/shop")
        seen.add(page.text.partition('data-person="')[2].partition('"')[0])
    assert len(seen) == 2
    assert all(each.startswith("oidc-") for each in seen)


@pytest.mark.parametrize(
    "settings",
    [
        {"oidc_issuer": "http://issuer.example"},
        {"oidc_issuer": ISSUER, "console_url": "http://door.example", "oidc_client_id": "c", "oidc_tokens": ["a=b"]},
        {"oidc_issuer": ISSUER, "console_url": "https://door.example", "oidc_tokens": ["a=b"]},
        {"oidc_issuer": ISSUER, "console_url": "https://door.example", "oidc_client_id": "c"},
        {"oidc_tokens": ["labellers"]},
    ],
)
def test_settings_that_let_nobody_in_safely_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"oidc|console_url|GROUP"):
        GatewaySettings(**settings)
