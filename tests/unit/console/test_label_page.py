"""The page Label, by forms as its script and a browser without scripts send them."""

from __future__ import annotations

from typing import Any

import pytest
from support.consoles import Browser, console

from rewardloop_client import NewTask, RedisUnavailable, TooManySignals
from rewardloop_client.fake import FakeRewardloop

PART = {"x-part": "true", "hx-request": "true"}
PAIR = NewTask(("choice", "edit"), "How do I reset it?", ("Hold the button.", "No idea."), versions=("7", "secret-8"))


def fake_with(*tasks: NewTask) -> FakeRewardloop:
    """A fake with a project of these tasks and guidelines."""
    fake = FakeRewardloop()
    fake.labelling.add_tasks("shop", tasks or [PAIR], import_id="i")
    fake.labelling.set_guidelines("shop", "# Be *kind*")
    return fake


def lease_of(page: str) -> str:
    """The lease of the task on a page."""
    return page.partition('data-lease="')[2].partition('"')[0]


async def answered(browser: Browser, page: str, **fields: Any) -> str:
    """Answer the task on a page as its script does; returns the part that comes next."""
    sent = {"lease": lease_of(page), "guideline_version": "g", "seconds": "1.5", "comment": " why ", **fields}
    reply = await browser.post("/console/label/shop/answer", sent, **PART)
    assert reply.status_code == 200, reply.text
    return reply.text


@pytest.mark.parametrize(
    ("kind", "fields", "candidates", "said"),
    [
        ("choice", {"verdict": "choice:1"}, 2, "choice"),
        ("choice", {"verdict": "tie"}, 2, "tie"),
        ("ranking", {"verdict": "ranking", "order": "2,0,1"}, 3, "ranking"),
        ("ranking", {"verdict": "ranking:2,0,1", "order": ""}, 3, "ranking"),
        ("rating", {"verdict": "rating", "grade-0": "4", "grade-1": ""}, 2, "rating"),
        ("edit", {"verdict": "edit", "edited": "1", "edited_text": "Better.\r\nMuch."}, 2, "edit"),
    ],
)
async def test_each_kind_of_answer_becomes_a_signal(
    kind: Any, fields: dict[str, str], candidates: int, said: str
) -> None:
    fake = fake_with(NewTask((kind,), "How?", tuple(f"so {i}" for i in range(candidates))))
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        after = await answered(browser, page, **fields)
    assert "All done" in after
    (event,) = fake.events
    assert event.WhichOneof("signal") == said
    assert sorted(event.display_order) == list(range(candidates))
    assert event.guideline_version == "g"
    (given,) = fake.labelling.answers("shop")
    assert (given.seconds, given.comment, given.source) == (1.5, "why", "human")
    order = given.display_order
    if said == "choice":
        assert (event.choice.chosen, event.choice.rejected) == (order[1], order[0])
    if said == "ranking":
        assert list(event.ranking.order) == [order[2], order[0], order[1]]
    if said == "edit":
        assert (event.edit.response, event.edit.edited_text) == (order[1], "Better.\nMuch.")


async def test_a_skip_has_a_reason_and_makes_no_signal() -> None:
    fake = fake_with()
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        refused = await browser.post(
            "/console/label/shop/answer", {"lease": lease_of(page), "verdict": "skip", "reason": " "}, **PART
        )
        await answered(browser, page, verdict="skip", reason="Harmful content")
    assert refused.status_code == 400
    assert fake.events == []
    (progress,) = fake.labelling.progress("shop")
    assert progress.skips == {"Harmful content": 1}


async def test_the_page_tells_nothing_of_versions_and_shows_the_order_that_was_drawn() -> None:
    fake = fake_with()
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        again = (await browser.get("/console/label/shop")).text
        await answered(browser, page, verdict="tie")
    assert "secret-8" not in page
    assert lease_of(page) == lease_of(again)
    (given,) = fake.labelling.answers("shop")
    places = [page.index(f">{given.candidates[i]}<") for i in given.display_order]
    assert places == sorted(places)


async def test_guidelines_are_beside_the_task_and_come_again_only_when_they_change() -> None:
    fake = fake_with(PAIR, NewTask(("choice",), "And?", ("a", "b")), NewTask(("choice",), "So?", ("a", "b")))
    version = fake.labelling.guidelines("shop").version
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        assert f'data-version="{version}"' in page
        assert "Be <em>kind</em>" in page
        same = await answered(browser, page, verdict="tie", guideline_version=version)
        assert 'id="guidelines"' not in same
        fake.labelling.set_guidelines("shop", "Be strict")
        changed = await answered(browser, same, verdict="tie", guideline_version=version)
    assert "Be strict" in changed


async def test_an_answer_is_taken_back_and_its_form_filled_in() -> None:
    fake = fake_with(NewTask(("ranking",), "How?", ("a", "b", "c")), PAIR)
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        await answered(browser, page, verdict="ranking", order="2,1,0")
        assert len(fake.events) == 1
        back = await browser.post("/console/label/shop/undo", {}, **PART)
        nothing = await browser.post("/console/label/shop/undo", {}, **PART)
    assert fake.events == []
    assert "You had said: Order 3, 2, 1." in back.text
    assert 'name="order" value="2,1,0"' in back.text
    assert "why</textarea>" in back.text
    assert nothing.status_code == 409
    assert "no answer of yours" in nothing.text


async def test_the_same_answer_twice_counts_once_and_another_one_is_refused_in_words() -> None:
    fake = fake_with(PAIR, NewTask(("choice",), "And?", ("a", "b")))
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        first = await answered(browser, page, verdict="choice:0")
        again = await answered(browser, page, verdict="choice:0")
        other = await answered(browser, page, verdict="choice:1")
    assert len(fake.events) == 1
    assert "not recorded" not in again
    assert "Your answer was not recorded." in other
    assert lease_of(first) == lease_of(again) == lease_of(other)


@pytest.mark.parametrize(
    ("error", "status"),
    [(RedisUnavailable("Redis is away", retry_after_s=2.0), 503), (TooManySignals("enough for today"), 429)],
)
async def test_a_failure_that_may_pass_says_when_to_send_again(error: Any, status: int) -> None:
    fake = fake_with()
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        fake.fail("answer", error, times=9)
        reply = await browser.post("/console/label/shop/answer", {"lease": lease_of(page), "verdict": "tie"}, **PART)
    assert reply.status_code == status
    assert reply.headers.get("retry-after") == ("2" if status == 503 else None)
    assert fake.events == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"verdict": "choice:9"},
        {"verdict": "choice:x"},
        {"verdict": "ranking", "order": "0,0"},
        {"verdict": "ranking", "order": "a"},
        {"verdict": "ranking:", "order": ""},
        {"verdict": "rating"},
        {"verdict": "rating", "grade-0": "many"},
        {"verdict": "edit", "edited_text": ""},
        {"verdict": "delete"},
        {"verdict": "skip", "reason": "x" * 65},
    ],
)
async def test_what_is_no_answer_is_refused_and_nothing_is_recorded(fields: dict[str, str]) -> None:
    fake = fake_with(NewTask(("choice", "ranking", "rating", "edit"), "How?", ("a", "b")))
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        reply = await browser.post("/console/label/shop/answer", {"lease": lease_of(page), **fields}, **PART)
    assert reply.status_code == 400
    assert fake.events == []


async def test_a_browser_without_scripts_goes_on_by_pages() -> None:
    fake = fake_with()
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        reply = await browser.post("/console/label/shop/answer", {"lease": lease_of(page), "verdict": "choice:0"})
        undone = await browser.post("/console/label/shop/undo")
    assert (reply.status_code, reply.headers["location"]) == (303, "/console/label/shop")
    assert undone.status_code == 303
    assert fake.events == []


async def test_projects_are_listed_with_what_this_person_has_done() -> None:
    fake = fake_with(PAIR, NewTask(("choice",), "And?", ("a", "b")))
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        await answered(browser, page, verdict="tie")
        listed = (await browser.get("/console/label")).text
        unknown = await browser.get("/console/label/nowhere")
    assert '<a href="/console/label/shop">' in listed
    assert "You have answered 1" in listed
    assert unknown.status_code == 404
    assert "nowhere" in unknown.text


async def test_a_ranking_that_nobody_moved_is_no_answer_until_its_order_is_said_to_be_meant() -> None:
    fake = fake_with(NewTask(("ranking",), "How?", ("a", "b", "c")))
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        order = page.partition('name="order" value="')[2].partition('"')[0]
        untouched = {"lease": lease_of(page), "verdict": "ranking", "order": order}
        refused = await browser.post("/console/label/shop/answer", untouched, **PART)
        assert fake.events == []
        await answered(browser, page, verdict="ranking:0,1,2")
    assert 'value="ranking:0,1,2"' in page
    assert refused.status_code == 400
    assert "You have moved nothing." in refused.text
    (given,) = fake.labelling.answers("shop")
    assert list(given.verdict.ranking.order) == list(given.display_order)


async def test_a_rating_without_a_grade_says_what_is_missing() -> None:
    fake = fake_with(NewTask(("rating",), "How?", ("a", "b")))
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        fields = {"lease": lease_of(page), "verdict": "rating", "grade-0": ""}
        refused = await browser.post("/console/label/shop/answer", fields, **PART)
    assert refused.status_code == 400
    assert "Give at least one grade." in refused.text


async def test_the_list_counts_a_task_that_this_person_has_as_open() -> None:
    fake = fake_with(PAIR, NewTask(("choice",), "And?", ("a", "b")))
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        await answered(browser, page, verdict="tie")
        listed = (await browser.get("/console/label")).text
    assert "<strong>1 task open</strong> for you of 2." in " ".join(listed.split())


async def test_a_person_who_skipped_the_last_task_is_not_told_that_others_have_it() -> None:
    fake = fake_with()
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        after = await answered(browser, page, verdict="skip", reason="Harmful content")
    assert "You have answered or skipped 1 of the tasks that are left. It waits for other people." in after
    assert "Others have" not in after


async def test_an_answer_that_is_taken_back_leaves_the_count_as_it_was() -> None:
    fake = fake_with(*(NewTask(("choice",), f"{i}?", ("a", "b")) for i in range(5)))
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
        await answered(browser, page, verdict="tie")
        back = (await browser.post("/console/label/shop/undo", {}, **PART)).text
    assert "<strong>0</strong> answered, <strong>5</strong> left for you" in page
    assert "<strong>0</strong> answered, <strong>5</strong> left for you" in back


async def test_texts_of_the_prompt_and_the_responses_are_shown_safely() -> None:
    turns = [
        {"role": "system", "content": "<script>alert(1)</script>"},
        {"role": "user", "content": "![x](https://evil.example/a.png)"},
    ]
    long = "x" * 100_000
    fake = fake_with(NewTask(("rating",), turns, ("</textarea><script>alert(2)</script>", long), scale=(0.5, 3)))
    async with console(fake) as browser:
        page = (await browser.get("/console/label/shop")).text
    assert "<script>" not in page
    assert "<img" not in page
    assert long in page
    assert 'min="0.5" max="3.0"' in page
