"""Signing in to the console, and what other sites, stolen keys and old forms can do: nothing."""

from __future__ import annotations

import pytest
from support.consoles import Browser, GuardedRewardloop, console
from support.http_doors import URL

from rewardloop.formats.tokens import make_publishable
from rewardloop_client import Identity, NewTask, Unreachable
from rewardloop_client.fake import FakeRewardloop
from rewardloop_console.navigation import COMPARE, DECIDE, LABEL, PEOPLE, PLACES, WATCH, Place
from rewardloop_console.sessions import Session, Sessions

COOKIE = "rewardloop-console-50080"
NOBODY = Identity("", frozenset(), True)


async def test_without_callers_the_own_user_is_signed_in_without_a_token() -> None:
    async with console(FakeRewardloop()) as browser:
        first = await browser.get("/console/")
        page = await browser.get("/console/watch")
        sign_in = await browser.get("/console/sign-in")
    assert first.headers["location"] == "/console/label"
    assert page.status_code == 200
    assert "Sign out" not in page.text
    assert sign_in.headers["location"] == "/console/"


async def test_a_token_signs_in_and_signs_out() -> None:
    fake = GuardedRewardloop()
    token = fake.add("anna", "label", "view")
    async with console(fake) as browser:
        before = await browser.get("/console/watch")
        signed_in = await browser.sign_in(token)
        page = await browser.get("/console/watch")
        signed_out = await browser.post("/console/sign-out")
        after = await browser.get("/console/watch")
    assert before.headers["location"] == "/console/sign-in?next=/console/watch"
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/console/")
    assert "anna" in page.text
    assert token not in page.text
    assert signed_out.status_code == 303
    assert after.headers["location"].startswith("/console/sign-in")


@pytest.mark.parametrize(
    ("token", "status"),
    [("", 400), ("two words", 400), ("ümlaut", 400), ("x" * 5000, 400), ("rlt_" + "a" * 43, 401)],
)
async def test_what_is_no_token_signs_nobody_in(token: str, status: int) -> None:
    async with console(GuardedRewardloop()) as browser:
        reply = await browser.sign_in(token)
        assert "Token" in reply.text
        page = await browser.get("/console/label")
    assert reply.status_code == status
    assert 'role="alert"' in reply.text
    assert page.status_code == 303


async def test_a_publishable_token_opens_no_console() -> None:
    fake = GuardedRewardloop()
    made = make_publishable(fake.add("shop", "feedback", "label"), "g1", "ann", 4_000_000_000)
    async with console(fake) as browser:
        reply = await browser.sign_in(made)
    assert reply.status_code == 400


async def test_signing_in_makes_a_new_key_and_a_planted_one_is_worth_nothing() -> None:
    fake = GuardedRewardloop()
    token = fake.add("anna", "label")
    async with console(fake) as browser:
        await browser.get("/console/sign-in")
        planted = browser.http.cookies[COOKIE]
        await browser.sign_in(token)
        own = browser.http.cookies[COOKIE]
        assert own != planted
        _hold(browser, planted)
        assert (await browser.get("/console/label")).status_code == 303
        _hold(browser, own[:-1] + ("0" if own[-1] != "0" else "1"))
        assert (await browser.get("/console/label")).status_code == 303


async def test_signing_out_ends_the_session_of_a_copied_cookie() -> None:
    fake = GuardedRewardloop()
    token = fake.add("anna", "label", "view")
    async with console(fake) as browser:
        await browser.sign_in(token)
        first = browser.http.cookies[COOKIE]
        await browser.get("/console/watch")
        assert (await browser.post("/console/sign-out")).status_code == 303
        await browser.sign_in(token)
        _hold(browser, first)
        assert (await browser.get("/console/watch")).status_code == 303


async def test_the_cookie_is_for_the_console_alone_and_no_script_reads_it() -> None:
    async with console(FakeRewardloop()) as browser:
        on_loopback = (await browser.get("/console/watch")).headers["set-cookie"]
    settings = {"listen": "0.0.0.0:443", "insecure_listen": True}
    async with console(FakeRewardloop(), **settings) as browser:
        elsewhere = (await browser.get("/console/watch")).headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", "Path=/console"):
        assert part in on_loopback
        assert part in elsewhere
    assert "Secure" not in on_loopback
    assert elsewhere.startswith("__Secure-")
    assert "Secure;" in f"{elsewhere};".replace("__Secure-", "")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:50081"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_a_form_of_another_site_changes_nothing(headers: dict[str, str]) -> None:
    fake = FakeRewardloop()
    fake.labelling.add_tasks("shop", [NewTask(("choice",), "How?", ("a", "b"))], import_id="i")
    async with console(fake) as browser:
        await browser.get("/console/label/shop")
        lease = fake.labelling.next_task("shop", labeller=_own(fake)).task
        assert lease is not None
        fields = {"lease": lease.lease_id, "verdict": "tie"}
        reply = await browser.post("/console/label/shop/answer", fields, **headers)
        assert reply.status_code == 403
        assert fake.events == []
        good = await browser.post("/console/label/shop/answer", fields)
        assert good.status_code == 303
    assert len(fake.events) == 1


@pytest.mark.parametrize("form_token", [None, "", "0" * 64, "é"])
async def test_a_form_without_the_token_of_this_browser_changes_nothing(form_token: str | None) -> None:
    fake = FakeRewardloop()
    fake.labelling.add_tasks("shop", [NewTask(("choice",), "How?", ("a", "b"))], import_id="i")
    async with console(fake) as browser, console(fake) as other:
        await browser.get("/console/label/shop")
        await other.get("/console/label/shop")
        for token in (form_token, other.form_token):
            reply = await browser.post("/console/label/shop/undo", {"form_token": token, "field": ""})
            assert reply.status_code == 403
    assert "undo" not in fake.attempts


async def test_a_form_must_be_a_form() -> None:
    async with console(FakeRewardloop()) as browser:
        await browser.get("/console/watch")
        reply = await browser.http.post(
            "/console/sign-out", json={"form_token": browser.form_token}, headers={"origin": URL}
        )
    assert reply.status_code == 415


async def test_the_api_reads_no_cookie_and_the_console_no_token() -> None:
    fake = GuardedRewardloop()
    token = fake.add("anna", "label", "view", "score")
    async with console(fake) as browser:
        bearer = {"authorization": f"Bearer {token}"}
        assert (await browser.http.get("/console/watch", headers=bearer)).status_code == 303
        await browser.sign_in(token)
        browser.http.cookies.set(COOKIE, browser.http.cookies[COOKIE], domain="127.0.0.1", path="/")
        reply = await browser.http.post("/v1/score", json={"prompt": "How?", "responses": ["a"]})
    assert reply.status_code == 401


async def test_nothing_frames_a_page_or_runs_in_it() -> None:
    async with console(FakeRewardloop(), cors_origins=["https://shop.example"]) as browser:
        for path in ("/console/label", "/console/sign-in", "/console/nowhere", "/console/static/console.js"):
            headers = (await browser.get(path, origin="https://shop.example")).headers
            assert headers["x-frame-options"] == "DENY"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "default-src 'self'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["referrer-policy"] == "same-origin"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] in ("no-store", "no-cache")
            assert "access-control-allow-origin" not in headers
        page = (await browser.get("/console/label")).text
    assert "<script>" not in page
    assert "style=" not in page
    assert "onclick" not in page


async def test_a_token_that_is_taken_away_leads_to_the_sign_in_form_at_once() -> None:
    fake = GuardedRewardloop()
    token = fake.add("anna", "label")
    async with console(fake) as browser:
        await browser.sign_in(token)
        assert (await browser.get("/console/label")).status_code == 200
        del fake.tokens[token]
        reply = await browser.get("/console/label")
        assert reply.headers["location"] == "/console/sign-in?next=/console/label"
        form = await browser.get(reply.headers["location"])
        assert form.status_code == 200
        assert "Token" in form.text
        assert (await browser.sign_in(fake.add("anna", "label"))).status_code == 303


async def test_a_link_from_elsewhere_is_asked_for_again_with_the_cookie() -> None:
    async with console(FakeRewardloop()) as browser:
        await browser.get("/console/watch")
        own = browser.http.cookies[COOKIE]
        browser.http.cookies.clear()
        reply = await browser.get("/console/watch", **{"sec-fetch-site": "cross-site"})
    assert own
    assert "set-cookie" not in reply.headers
    assert 'http-equiv="refresh" content="0; url=/console/watch"' in reply.text


@pytest.mark.parametrize(
    "where", ["https://evil.example/", "//evil.example", "/console/..\\evil", "/v1/models", "/console/sign-in"]
)
async def test_signing_in_leads_to_no_other_site(where: str) -> None:
    fake = GuardedRewardloop()
    token = fake.add("anna", "label")
    async with console(fake) as browser:
        await browser.get("/console/sign-in")
        reply = await browser.post("/console/sign-in", {"token": token, "next": where})
    assert reply.headers["location"] == "/console/"


@pytest.mark.parametrize("place", [LABEL, WATCH, COMPARE, DECIDE, PEOPLE], ids=lambda place: place.title)
async def test_a_page_is_shown_to_its_roles_alone(place: Place) -> None:
    assert place in PLACES
    for role in ("label", "view", "admin", "score", "feedback", "generate"):
        fake = GuardedRewardloop()
        token = fake.add("anna", role)
        async with console(fake) as browser:
            await browser.sign_in(token)
            reply = await browser.get(place.path)
            assert (reply.status_code == 403) == (role not in place.roles), role


async def test_a_token_without_a_role_of_the_console_is_told_so() -> None:
    fake = GuardedRewardloop()
    token = fake.add("shop", "score")
    async with console(fake) as browser:
        await browser.sign_in(token)
        reply = await browser.get("/console/")
        await browser.post("/console/sign-out")
    assert reply.status_code == 403
    assert "none of the roles" in reply.text


async def test_a_removed_token_is_signed_out_at_its_next_call() -> None:
    fake = GuardedRewardloop()
    token = fake.add("anna", "label")
    async with console(fake) as browser:
        await browser.sign_in(token)
        del fake.tokens[token]
        reply = await browser.get("/console/label")
    assert reply.headers["location"].startswith("/console/sign-in")


async def test_services_that_are_away_are_named_and_nobody_is_signed_in() -> None:
    fake = GuardedRewardloop()
    token = fake.add("anna", "label")
    async with console(fake) as browser:
        await browser.get("/console/sign-in")
        fake.fail("get_identity", Unreachable("no server answered at 127.0.0.1:50051"), times=9)
        reply = await browser.post("/console/sign-in", {"token": token})
        page = await browser.get("/console/label")
    assert (reply.status_code, page.status_code) == (503, 303)
    assert "no server answered" in reply.text.lower()


def test_a_session_ends_when_nobody_uses_it_and_after_a_day() -> None:
    now = [0.0]
    sessions = Sessions(idle_s=60, clock=lambda: now[0])
    session = sessions.sign_in("t", NOBODY, "anna", "anna")
    now[0] = 59
    assert isinstance(sessions.of(session.key), Session)
    now[0] = 118
    assert sessions.of(session.key) is not None
    now[0] = 179
    assert sessions.of(session.key) is None
    busy = sessions.sign_in("t", NOBODY, "anna", "anna")
    for _ in range(24 * 60 + 1):
        now[0] += 60
        alive = sessions.of(busy.key)
    assert alive is None


def test_keys_of_another_process_are_not_known() -> None:
    one, other = Sessions(60), Sessions(60)
    signed = one.signed(one.new_key())
    assert one.key_of(signed) is not None
    assert other.key_of(signed) is None
    for value in ("", ".", "a.b", signed[:-2], "é.é"):
        assert one.key_of(value) is None


def _hold(browser: Browser, value: str) -> None:
    """Make a value the only cookie of the browser."""
    browser.http.cookies.clear()
    browser.http.cookies.set(COOKIE, value)


def _own(fake: FakeRewardloop) -> str:
    """The labeller as whom the console has asked for its task."""
    (lease,) = fake.label_queue._projects["shop"].leases.values()
    return lease.labeller
