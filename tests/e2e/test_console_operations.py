"""Somebody watches, decides and mutes in a real Chromium; every page is usable on a phone and by a screen reader."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support.chromium import PHONE, chromium, expect, grave_violations, width_of
from support.consoles import GuardedRewardloop, console_on_a_port
from support.loops import REASON, busy_fake

from rewardloop.v1 import feedback_pb2
from rewardloop_client import Feedback, TaughtVersion
from rewardloop_client._calls import LIST_TAUGHT_VERSIONS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.long

PAGES = (
    "watch",
    "watch/rounds/reward/t1/8",
    "watch/letters",
    "compare",
    "compare/reports/r1",
    "decide",
    "decide/confirm?action=canary&model=reward&version=2&percent=5",
    "decide/erasure?id=user-17",
    "people",
    "people/mute?caller=shop&id=user-17",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def test_a_version_is_promoted_and_rolled_back_letters_are_handled_and_a_person_is_muted(browser: Browser) -> None:
    fake = busy_fake()
    with console_on_a_port(fake) as url:
        page = browser.new_page()
        page.goto(f"{url}/console/watch")
        expect(page.get_by_text("reward: 37 more comparisons.")).to_be_visible()
        expect(page.get_by_text(REASON)).to_be_visible()
        page.get_by_role("link", name="reward 8").click()
        expect(page.get_by_role("heading", name="Where the candidate is worse")).to_be_visible()
        expect(page.get_by_text(REASON)).to_be_visible()
        expect(page.locator("svg.curve")).to_have_count(2)
        expect(page).to_have_title("reward round 8 · rewardloop")

        page.get_by_role("link", name="Decide").click()
        page.get_by_role("link", name="Promote reward 2").click()
        expect(page.get_by_text("loaded and warmed beside version 1")).to_be_visible()
        page.get_by_label("Reason").fill("it is better")
        page.get_by_role("button", name="Promote: reward version 2").click()
        expect(page.get_by_text("The version is live.")).to_be_visible()
        assert fake.get_version("reward").version == "2"
        page.get_by_role("link", name="Roll reward back to 1").click()
        expect(page.get_by_text("Trainers are held")).to_be_visible()
        page.get_by_role("button", name="Roll reward back to version 1").click()
        expect(page.get_by_text("The version before is live again.")).to_be_visible()
        assert fake.get_version("reward").version == "1"
        expect(page.get_by_text("held", exact=True)).to_be_visible()

        page.get_by_role("link", name="Watch").click()
        page.locator("#dead-letters").click()
        page.get_by_role("button", name="Put back").first.click()
        expect(page.get_by_text("The signal is in the stream again.")).to_be_visible()
        page.get_by_role("button", name="Discard…").click()
        page.get_by_role("button", name="Discard it").click()
        expect(page.get_by_text("The letter was discarded.")).to_be_visible()
        assert (fake.loop.requeued, fake.loop.letters) == (["1700000000001-0"], [])

        page.get_by_role("link", name="People").click()
        page.get_by_role("link", name="Mute user-17").click()
        page.get_by_label("Reason").fill("a shared account")
        page.get_by_role("button", name="Mute").click()
        expect(page.get_by_role("link", name="Hear user-17")).to_be_visible()
        page.close()
    (person,) = [each for each in fake.operations.people().people if each.HasField("mute")]
    assert (person.caller, person.annotator_id) == ("shop", "user-17")


def test_watch_renews_itself_and_keeps_the_keyboard_where_it_was(browser: Browser) -> None:
    fake = busy_fake()
    with console_on_a_port(fake) as url:
        page = browser.new_page()
        page.goto(f"{url}/console/watch")
        page.get_by_role("link", name="reward 8").focus()
        fake.loop.waiting_for["reward"] = "reward: 36 more comparisons."
        page.get_by_text("reward: 36 more comparisons.").wait_for(timeout=30_000)
        page.wait_for_function("document.activeElement.textContent === 'reward 8'")
        page.close()


def test_a_report_cannot_run_or_load_anything(browser: Browser) -> None:
    fake = busy_fake()
    with socket.create_server(("127.0.0.1", 0)) as beacon, console_on_a_port(fake) as url:
        beacon.settimeout(1.0)
        fake.loop.reports[0].page += f"<img src='http://127.0.0.1:{beacon.getsockname()[1]}/seen'>"
        page = browser.new_page()
        page.goto(f"{url}/console/compare/reports/r1")
        page.frame_locator("iframe.report").get_by_role("heading", name="Report").wait_for()
        expect(page).to_have_title("reward: 2 <b> · rewardloop")
        with pytest.raises(TimeoutError):
            beacon.accept()
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_grave_violation_or_scrolls_sideways_on_a_phone(browser: Browser, scheme: str) -> None:
    with console_on_a_port(busy_fake()) as url:
        context = browser.new_context(color_scheme=scheme, viewport=PHONE)  # type: ignore[arg-type]
        page = context.new_page()

        def check(state: str) -> None:
            assert grave_violations(page) == [], state
            assert width_of(page) <= PHONE["width"], state

        for path in PAGES:
            page.goto(f"{url}/console/{path}")
            check(path)
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sign_in_page_has_no_grave_violation_and_fits_a_phone(browser: Browser, scheme: str) -> None:
    guarded = GuardedRewardloop()
    token = guarded.add("anna", "view")
    with console_on_a_port(guarded) as url:
        context = browser.new_context(color_scheme=scheme, viewport=PHONE)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(f"{url}/console/watch")
        for given in ("rlt_" + "x" * 200, token):
            expect(page.get_by_label("Token")).to_be_visible()
            assert grave_violations(page) == []
            assert width_of(page) <= PHONE["width"]
            page.get_by_label("Token").fill(given)
            page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/console/watch")
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_is_erased_after_a_look_at_what_learned_from_them(browser: Browser, scheme: str) -> None:
    fake = busy_fake()
    fake.record(Feedback.tie(prompt="Q", responses=["a", "b"], annotator_id="user-17"))
    fake.taught = [TaughtVersion("reward", "2", True), TaughtVersion("policy", "2", False)]
    answer = fake._answers[LIST_TAUGHT_VERSIONS]
    fake._answers[LIST_TAUGHT_VERSIONS] = lambda request: feedback_pb2.ListTaughtVersionsResponse()
    with console_on_a_port(fake) as url:
        context = browser.new_context(color_scheme=scheme, viewport=PHONE)  # type: ignore[arg-type]
        page = context.new_page()

        def check(state: str) -> None:
            assert grave_violations(page) == [], state
            assert width_of(page) <= PHONE["width"], state

        page.goto(f"{url}/console/decide")
        page.get_by_role("link", name="What to do").click()
        page.get_by_label("The person's id").fill("user-17")
        page.get_by_role("button", name="Show what learned").click()
        expect(page.get_by_text("It has not answered yet")).to_be_visible()
        check("the trainer has not answered")
        fake._answers[LIST_TAUGHT_VERSIONS] = answer
        page.locator("#taught-versions").wait_for(timeout=60_000)  # the page asks again by itself
        expect(page.locator("#taught-versions tbody tr")).to_have_text(
            ["reward 2 learned from this person", "policy 2 descends from a version that did"], use_inner_text=True
        )
        assert len(fake.events) == 1
        check("what learned")
        page.get_by_label("once more").fill("user-17")
        page.get_by_role("button", name="Erase for good").click()
        expect(page.get_by_text("The person is erased.")).to_be_visible()
        check("progress")
        assert "user-17" not in page.url
        context.close()
    assert fake.events == []


@pytest.mark.parametrize("path", ["watch", "decide", "people"])
def test_rows_are_cards_on_a_phone_and_the_menu_is_one_line(browser: Browser, path: str) -> None:
    with console_on_a_port(busy_fake()) as url:
        page = browser.new_page(viewport=PHONE)
        page.goto(f"{url}/console/{path}")
        tables = page.locator("main table").filter(visible=True)
        expect(tables).not_to_have_count(0)
        for box in (each.bounding_box() for each in (*tables.all(), *page.locator("main table a").all())):
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE["width"]
        tops = {round(each.bounding_box()["y"]) for each in page.locator(".top nav a").all()}  # type: ignore[index]
        assert len(tops) == 1
        page.close()
