"""Who is let in by HTTP: hosts, origins, sizes, types, rates, and the headers of every answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError
from support.http_doors import door

from rewardloop_client.fake import FakeRewardloop
from rewardloop_gateway.caller import token_of
from rewardloop_gateway.rates import Rates
from rewardloop_gateway.settings import GatewaySettings
from rewardloop_gateway.wrapped import SECURITY_HEADERS

OWN = {"prompt": "How?", "responses": ["so", "and so"]}
SHOP = "https://shop.example"


@pytest.mark.parametrize("path", ["/healthz", "/nope", "/v1/feedback", "/openapi.json"])
async def test_every_answer_has_the_security_headers(path: str) -> None:
    async with door(FakeRewardloop()) as http:
        for reply in (await http.get(path), await http.post(path, content=b"{")):
            assert {name: reply.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
            assert "set-cookie" not in reply.headers
            assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:50080", 200), ("localhost", 200), ("[::1]:50080", 200), ("LOCALHOST:1", 200), ("evil.example", 421)],
)
async def test_a_name_that_is_not_ours_is_refused(host: str, status: int) -> None:
    """Else a page could reach loopback by a name of its own that resolves to 127.0.0.1."""
    async with door(FakeRewardloop()) as http:
        reply = await http.post("/v1/score", json=OWN, headers={"host": host})
    assert reply.status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [(SHOP, 200), ("http://127.0.0.1:50080", 200), ("https://evil.example", 403), ("null", 403), (SHOP + ".evil", 403)],
)
async def test_pages_of_other_origins_are_refused(origin: str, status: int) -> None:
    async with door(FakeRewardloop(), cors_origins=[SHOP]) as http:
        reply = await http.post("/v1/score", json=OWN, headers={"origin": origin})
        asked = {"origin": origin, "access-control-request-method": "POST"}
        preflight = await http.options(
            "/v1/score", headers={**asked, "access-control-request-headers": "authorization"}
        )
    assert reply.status_code == status
    assert reply.headers.get("access-control-allow-origin") == (SHOP if origin == SHOP else None)
    assert (preflight.status_code == 200) == (origin == SHOP)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_form_of_a_foreign_page_is_refused(kind: str) -> None:
    """A browser sends these without asking first, so that a page could forge them."""
    async with door(FakeRewardloop()) as http:
        reply = await http.post(
            "/v1/score", content=b'{"prompt":"a","responses":["b"]}', headers={"content-type": kind}
        )
    assert (reply.status_code, reply.json()["error"]["reason"]) == (415, "NOT_JSON")


async def test_large_bodies_are_refused_with_and_without_a_length() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 1024

    headers = {"content-type": "application/json"}
    async with door(FakeRewardloop(), max_body_kib=16) as http:
        known = await http.post("/v1/score", content=b" " * 17 * 1024, headers=headers)
        unknown = await http.post("/v1/score", content=chunks(), headers=headers)
    for reply in (known, unknown):
        assert (reply.status_code, reply.json()["error"]["reason"]) == (413, "MESSAGE_TOO_LARGE")


async def test_compressed_bodies_are_not_read() -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    async with door(FakeRewardloop()) as http:
        assert (await http.post("/v1/score", content=b"x", headers=headers)).status_code == 415


async def test_a_token_that_calls_too_often_waits() -> None:
    async with door(FakeRewardloop(), token_requests_per_s=1.0) as http:
        headers = {"authorization": "Bearer busy"}
        statuses = [(await http.post("/v1/score", json=OWN, headers=headers)).status_code for _ in range(12)]
        other = await http.post("/v1/score", json=OWN, headers={"authorization": "Bearer calm"})
        refused = await http.post("/v1/score", json=OWN, headers=headers)
    assert statuses == [200] * 10 + [429] * 2
    assert other.status_code == 200
    assert 0 < refused.json()["error"]["retry_after_s"] <= 1
    assert refused.headers["retry-after"] == "1"


def test_rates_fill_again_and_forget_old_tokens() -> None:
    now = [0.0]
    rates = Rates(2.0, 1.0, lambda: now[0])
    assert [rates.wait_s("a") for _ in range(10)] == [0.0] * 10
    assert rates.wait_s("a") == 0.5
    now[0] = 0.5
    assert rates.wait_s("a") == 0.0
    assert rates.wait_s("a") == 0.5
    assert rates.wait_s("") == 0.0
    assert Rates(0.0, 1.0).wait_s("a") == 0.0


@pytest.mark.parametrize(
    ("value", "token"),
    [(b"Bearer abc", "abc"), (b"bearer  abc ", "abc"), (b"Basic abc", None), (b"Bearer ", None), (b"Bearer a b", None),
     (b"Bearer \xff", None)],
)  # fmt: skip
async def test_only_bearer_tokens_are_credentials(value: bytes, token: str | None) -> None:
    assert token_of([(b"host", b"x"), (b"authorization", value)]) == token
    assert token_of([]) == ""
    async with door(FakeRewardloop()) as http:
        reply = await http.post("/v1/score", json=OWN, headers={"authorization": value})
    assert reply.status_code == (401 if token is None else 200)


async def test_with_a_certificate_of_its_own_it_lets_nobody_in_without_a_token() -> None:
    async with door(FakeRewardloop(), client_cert="cert.pem", client_key="key.pem") as http:
        reply = await http.post("/v1/score", json=OWN)
        assert (reply.status_code, reply.json()["error"]["reason"]) == (401, "NO_CREDENTIALS")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert (await http.post("/v1/score", json=OWN, headers={"authorization": "Bearer t"})).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": "0.0.0.0:50080"},
        {"listen": "127.0.0.1"},
        {"cors_origins": ["*"]},
        {"cors_origins": ["https://shop.example/page"]},
        {"own_user": True, "listen": "192.0.2.1:80", "insecure_listen": True},
        {"tls_cert": "cert.pem"},
        {"no_such": 1},
    ],
)
def test_unsafe_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GatewaySettings(**settings)
