"""People label in a real Chromium: by keyboard, with the mouse, on a phone, and with responses that mean harm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.chromium import PHONE, chromium, expect, grave_violations, width_of
from support.consoles import GuardedRewardloop, console_on_a_port

from rewardloop_client import NewTask, RedisUnavailable
from rewardloop_client.fake import FakeRewardloop
from rewardloop_gateway.caller import TOKEN

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.long

GUIDELINES = (
    "# Which answer helps more?\n\n1. It is **true**.\n2. It is short: `one` paragraph.\n\n[More](https://a.example)"
)
LONG_LINE = "x" * 100_000
HARM = (
    "<script>document.title = 'owned'; alert(1)</script>\n\n<img src=x onerror=\"document.title='owned'\">\n\n"
    "![beacon](https://evil.example/beacon.png) [press](javascript:document.title='owned')\n\n| a | b |\n| - | - |\n| "
    + "y" * 300
    + " | z |\n\n```html\n<script>alert(2)</script>\n"
    + "z" * 5000
    + "\n```"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def project(*tasks: NewTask, fake: FakeRewardloop | None = None) -> FakeRewardloop:
    """A fake with a project and guidelines."""
    fake = fake or FakeRewardloop()
    fake.labelling.add_tasks("shop", tasks, import_id="i")
    fake.labelling.set_guidelines("shop", GUIDELINES)
    return fake


def pairs(count: int) -> list[NewTask]:
    return [NewTask(("choice",), f"Question {i}?", (f"answer {i}", f"other answer {i}")) for i in range(count)]


def press(page: Page, key: str) -> None:
    """Press a key that answers, and wait until the next task is there."""
    lease = page.locator("#task").get_attribute("data-lease")
    page.wait_for_timeout(300)  # a key right after a new task is not taken for an answer to it
    page.keyboard.press(key)
    page.wait_for_function("before => document.getElementById('task').getAttribute('data-lease') !== before", arg=lease)


def until_answered(page: Page, count: int) -> None:
    """Wait until the page says that so many tasks are answered."""
    page.wait_for_function("count => document.getElementById('count').textContent.startsWith(count)", arg=str(count))


def test_twenty_pairs_by_keyboard_then_a_ranking_grades_an_edit_and_one_taken_back(browser: Browser) -> None:
    guarded = GuardedRewardloop()
    token = guarded.add("anna", "label")
    TOKEN.set(guarded.add("operators", "admin", "view"))  # of this thread's calls
    fake = project(
        *pairs(20),
        NewTask(("ranking",), "Which order?", ("a", "b", "c")),
        NewTask(("rating",), "How good?", ("d", "e")),
        NewTask(("choice", "edit"), "What is better?", ("f", "g")),
        fake=guarded,
    )
    with console_on_a_port(fake) as url:
        page = browser.new_page()
        page.goto(f"{url}/console/label/shop")
        page.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/label/shop")
        for i in range(20):
            press(page, "12t"[i % 3])
        expect(page.locator("#count")).to_have_text("20 answered, 3 left for you")
        page.wait_for_timeout(300)
        for key in "312":
            page.keyboard.press(key)
        page.locator(".ranking li").last.focus()
        page.keyboard.press("ArrowUp")
        press(page, "Enter")
        page.wait_for_timeout(300)
        page.keyboard.press("4")
        page.keyboard.press("2")
        press(page, "Enter")
        page.wait_for_timeout(300)
        page.keyboard.press("e")
        page.keyboard.press("Control+a")
        page.keyboard.type("h\nand i")
        press(page, "Control+Enter")
        expect(page.get_by_role("heading", name="All done")).to_be_visible()
        press(page, "u")
        expect(page.locator("#task")).to_contain_text("You had said: Response 1 was edited.")
        expect(page.locator("#edited-text")).to_have_value("h\nand i")
        assert [event.WhichOneof("signal") for event in fake.events[-3:]] == ["ranking", "rating", "rating"]
        page.wait_for_timeout(300)
        page.keyboard.press("c")
        press(page, "1")
        page.close()
    answers = list(fake.labelling.answers("shop"))
    kinds = [given.verdict.WhichOneof("verdict") for given in answers]
    assert kinds == ["choice", "choice", "tie"] * 6 + ["choice", "choice", "ranking", "ratings", "choice"]
    for i, given in enumerate(answers[:20]):
        if i % 3 < 2:
            assert given.verdict.choice.chosen == given.display_order[i % 3]
        assert given.labeller == "anna"
        assert given.seconds is not None
        assert 0 < given.seconds < 60
    # Pressed 3, 1, 2; then the last one went up.
    ranked = answers[20]
    assert list(ranked.verdict.ranking.order) == [ranked.display_order[i] for i in (2, 1, 0)]
    grades = {each.response: each.value for each in answers[21].verdict.ratings.ratings}
    assert grades == {answers[21].display_order[0]: 4, answers[21].display_order[1]: 2}
    version = fake.labelling.guidelines("shop").version
    assert {event.guideline_version for event in fake.events} == {version}
    assert {tuple(event.display_order) for event in fake.events[:20]} == {(0, 1), (1, 0)}


def test_a_response_that_means_harm_does_nothing(browser: Browser) -> None:
    fake = project(NewTask(("choice", "edit"), HARM, (HARM, LONG_LINE)), NewTask(("rating",), "Q", (HARM,)))
    requests: list[str] = []
    with console_on_a_port(fake) as url:
        for scheme, size in (("light", {"width": 1200, "height": 800}), ("dark", PHONE)):
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.on("request", lambda request: requests.append(request.url))
            page.on("dialog", lambda dialog: pytest.fail(dialog.message))
            page.goto(f"{url}/console/label/shop")
            page.keyboard.press("m")
            expect(page.locator(".source").first).to_be_visible()
            page.keyboard.press("m")
            expect(page).to_have_title(re.compile("^shop"))
            assert width_of(page) <= size["width"]
            expect(page.locator("#task img, #task script, #task iframe")).to_have_count(0)
            assert grave_violations(page) == []
            page.close()
    assert {request.split("/")[2] for request in requests} == {url.removeprefix("http://")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_of_the_page_is_accessible_and_fits_a_phone(browser: Browser, scheme: Any) -> None:
    fake = project(
        NewTask(("choice", "ranking", "rating", "edit"), [{"role": "user", "content": "Q"}], ("a", "b"), aspect="tone")
    )
    with console_on_a_port(fake) as url:
        page = browser.new_page(viewport=PHONE, color_scheme=scheme)

        def check(state: str) -> None:
            assert grave_violations(page) == [], state
            assert width_of(page) <= PHONE["width"], state

        page.goto(f"{url}/console/label")
        check("projects")
        page.goto(f"{url}/console/label/shop")
        check("choice")
        page.wait_for_timeout(300)
        for mode, state in (("k", "ranking"), ("r", "rating"), ("e", "edit")):
            page.keyboard.press(mode)
            check(state)
            page.keyboard.press("Escape")
        page.keyboard.press("?")
        check("keys")
        page.keyboard.press("Escape")
        page.keyboard.press("s")
        check("skip")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#notice")).to_contain_text("Say why")
        check("notice")
        page.keyboard.press("Escape")
        press(page, "1")
        check("done")
        page.goto(f"{url}/console/label/nowhere")
        check("refused")
        page.close()
    assert len(fake.events) == 0  # "1" chose the first reason to skip


def test_a_ranking_by_mouse_and_by_finger(browser: Browser) -> None:
    fake = project(*(NewTask(("ranking",), f"Order {i}?", ("a", "b", "c")) for i in range(2)))
    with console_on_a_port(fake) as url:
        page = browser.new_page()
        page.goto(f"{url}/console/label/shop")
        first, last = page.locator(".ranking li").first, page.locator(".ranking li").last
        start, end = first.bounding_box(), last.bounding_box()
        assert start is not None
        assert end is not None
        page.mouse.move(start["x"] + 60, start["y"] + 10)
        page.mouse.down()
        page.mouse.move(end["x"] + 60, end["y"] + end["height"] - 4, steps=8)
        page.mouse.up()
        page.get_by_role("button", name="Send this order").click()
        until_answered(page, 1)
        page.close()
        phone = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True).new_page()
        phone.goto(f"{url}/console/label/shop")
        phone.get_by_role("button", name="Move response 3 up").tap()
        phone.get_by_role("button", name="Send this order").tap()
        until_answered(phone, 2)
        phone.context.close()
    by_mouse, by_finger = fake.labelling.answers("shop")
    assert list(by_mouse.verdict.ranking.order) == [by_mouse.display_order[i] for i in (1, 2, 0)]
    assert list(by_finger.verdict.ranking.order) == [by_finger.display_order[i] for i in (0, 2, 1)]


def test_keys_send_only_what_the_labeller_has_said(browser: Browser) -> None:
    long = "word " * 800
    fake = project(
        NewTask(("ranking",), "Order?", ("a", "b", "c")),
        NewTask(("choice", "rating"), long, (long, "e"), scale=(0, 0.5)),
        NewTask(("edit",), "What is better?", ("f",)),
    )
    with console_on_a_port(fake) as url:
        page = browser.new_page(viewport=PHONE)
        page.goto(f"{url}/console/label/shop")
        page.wait_for_timeout(300)
        expect(page.locator(".ranking .place")).to_have_count(3)
        page.keyboard.press("Enter")
        page.get_by_text("You have moved nothing.").wait_for()
        page.locator(".ranking li").first.focus()
        page.keyboard.press("ArrowUp")  # there is no place above the first
        page.keyboard.press("Enter")
        assert fake.events == []
        press(page, "a")
        page.wait_for_timeout(300)
        page.keyboard.press("n")
        page.keyboard.press("Control+Enter")
        page.get_by_text("Say which is better").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("r")
        page.locator("#grade-1").focus()
        page.keyboard.press("Enter")
        page.get_by_text("Give at least one grade.").wait_for()
        notice = page.locator("#notice").bounding_box()
        assert notice is not None
        assert 0 <= notice["y"] < PHONE["height"]
        assert len(fake.events) == 1
        page.locator("#grade-1").fill("0.5")
        press(page, "Enter")
        page.wait_for_function("Math.abs(document.getElementById('task').getBoundingClientRect().y) < 1")
        page.wait_for_timeout(300)
        page.keyboard.press("e")
        page.keyboard.type("g")
        press(page, "Control+Enter")
        page.close()
    ranked, graded, edited = fake.labelling.answers("shop")
    assert list(ranked.verdict.ranking.order) == list(ranked.display_order)
    assert [each.value for each in graded.verdict.ratings.ratings] == [0.5]
    assert edited.verdict.edit.edited_text == "fg"


def test_an_answer_on_its_way_outlives_a_lost_network_and_a_closed_tab(browser: Browser) -> None:
    fake = project(*pairs(2))
    with console_on_a_port(fake) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}/console/label/shop")
        page.wait_for_timeout(300)
        context.set_offline(True)
        page.keyboard.press("2")
        page.get_by_text("The answer is not recorded yet").wait_for()
        page.close()
        assert fake.events == []
        context.set_offline(False)
        page = context.new_page()
        page.goto(f"{url}/console/label/shop")
        until_answered(page, 1)
        page.wait_for_function("Object.keys(localStorage).length === 0")
        page.close()
        context.close()
    (given,) = fake.labelling.answers("shop")
    assert given.verdict.choice.chosen == given.display_order[1]


def test_services_that_are_away_for_a_while_lose_no_answer_and_a_draft_outlives_its_page(browser: Browser) -> None:
    fake = project(NewTask(("edit",), "Q?", ("a",)), *pairs(1))
    with console_on_a_port(fake) as url:
        page = browser.new_page()
        page.goto(f"{url}/console/label/shop")
        page.locator("#edited-text").fill("half of a")
        page.reload()
        expect(page.locator("#edited-text")).to_have_value("half of a")
        fake.fail("answer", RedisUnavailable("Redis is away", retry_after_s=1.0), times=4)
        page.wait_for_timeout(300)
        page.locator("#edited-text").press("Control+Enter")
        page.get_by_text("The answer is not recorded yet").wait_for()
        until_answered(page, 1)
        page.close()
    (event,) = fake.events
    assert event.edit.edited_text == "half of a"
