"""The pages Watch, Compare, Decide and People, over the client's fake and without a socket."""

from __future__ import annotations

from typing import Any

import pytest
from support.consoles import console
from support.loops import HOSTILE, REASON, busy_fake

from rewardloop.v1 import feedback_pb2
from rewardloop.v1 import operations_pb2 as pb
from rewardloop_client import DeadlineExceeded, Feedback, Identity, TaughtVersion
from rewardloop_client._calls import LIST_TAUGHT_VERSIONS
from rewardloop_client.fake import FakeRewardloop

PAGES = (
    "/console/watch",
    "/console/watch/rounds/reward/t1/8",
    "/console/watch/rounds/policy/t1/3",
    "/console/watch/letters",
    "/console/compare",
    "/console/compare/reports/r1",
    "/console/decide",
    "/console/decide/confirm?action=promote&model=reward&version=2",
    "/console/decide/confirm?action=canary&model=policy&version=2&percent=5",
    "/console/decide/erasure?id=user-17",
    "/console/people",
    "/console/people/mute?caller=shop&id=user-17",
)


@pytest.mark.parametrize("path", PAGES)
async def test_page_is_whole_and_runs_nothing_that_others_wrote(path: str) -> None:
    async with console(busy_fake()) as browser:
        page = await browser.get(path)
        assert page.status_code == 200
        assert "</html>" in page.text
        assert HOSTILE not in page.text
        assert "<b>" not in page.text
        assert " style=" not in page.text
        assert "<script>" not in page.text


async def test_watch_says_what_models_wait_for_and_why_a_candidate_was_refused() -> None:
    async with console(busy_fake()) as browser:
        page = await browser.get("/console/watch")
        for text in ("reward: 37 more comparisons.", REASON, "RewardloopDeadLetters", "12,347", "in 62.0% (accuracy)"):
            assert text in page.text
        part = await browser.get("/console/watch", **{"hx-request": "true"})
        assert "<html" not in part.text
        assert "reward: 37 more comparisons." in part.text


async def test_round_has_curves_reasons_and_examples() -> None:
    async with console(busy_fake()) as browser:
        page = await browser.get("/console/watch/rounds/reward/t1/8")
        assert page.text.count("<svg") == 2
        assert "loss: from 0.7 to 0.45" in page.text
        assert REASON in page.text
        assert "Hold the button for five seconds." in page.text
        assert (await browser.get("/console/watch/rounds/reward/t1/99")).status_code == 404
        assert (await browser.get("/console/watch/rounds/reward/t1/x")).status_code == 404


async def test_dead_letters_are_put_back_and_discarded_after_a_question() -> None:
    fake = busy_fake()
    async with console(fake) as browser:
        assert "no signal is set" in (await browser.get("/console/watch/letters")).text
        done = await browser.post("/console/watch/letters/requeue", {"letter": "1700000000001-0"})
        assert done.status_code == 303
        assert fake.loop.requeued == ["1700000000001-0"]
        asked = await browser.post("/console/watch/letters/drop", {"letter": "1700000000002-0"})
        assert "deleted for good" in asked.text
        assert len(fake.loop.letters) == 1
        await browser.post("/console/watch/letters/drop", {"letter": "1700000000002-0", "sure": "yes"})
        assert fake.loop.letters == []
        gone = await browser.post("/console/watch/letters/drop", {"letter": "1700000000002-0", "sure": "yes"})
        assert "There is no such dead letter" in gone.text


async def test_promotion_is_confirmed_and_checked_against_what_was_seen() -> None:
    fake = busy_fake()
    async with console(fake) as browser:
        question = await browser.get("/console/decide/confirm?action=promote&model=reward&version=2")
        assert "loaded and warmed beside version 1" in question.text
        assert "no gate has compared it" in question.text
        fields = {"action": "promote", "model": "reward", "version": "2", "expected": "1", "reason": "it is better"}
        assert (await browser.post("/console/decide", fields)).status_code == 303
        assert fake.get_version("reward").version == "2"
        again = await browser.post("/console/decide", {**fields, "version": "1"})
        assert "POINTER_MOVED" in again.text
        assert fake.get_version("reward").version == "2"


async def test_rollback_holds_promotions_and_says_so_before() -> None:
    fake = busy_fake()
    fake.promote("reward", "2")
    async with console(fake) as browser:
        page = await browser.get("/console/decide")
        assert "Roll reward back to 1" in page.text
        question = await browser.get("/console/decide/confirm?action=rollback&model=reward&version=1")
        assert "Trainers are held" in question.text
        fields = {"action": "rollback", "model": "reward", "version": "1", "expected": "2"}
        await browser.post("/console/decide", fields)
        assert fake.get_version("reward").version == "1"
        assert "held" in (await browser.get("/console/decide")).text


@pytest.mark.parametrize("role", ["canary", "shadow"])
async def test_role_beside_the_live_version_begins_and_ends(role: str) -> None:
    fake = busy_fake()
    async with console(fake) as browser:
        await browser.get("/console/decide")
        fields = {"action": role, "model": "reward", "version": "2", "expected": "1", "percent": "12,5"}
        await browser.post("/console/decide", fields)
        assert fake.get_version("reward", "2").state == role
        late = await browser.post("/console/decide", {**fields, "expected": "2"})
        assert "1 is active, not 2 (POINTER_MOVED)" in late.text
        assert fake.get_version("reward", "2").state == role
        await browser.post("/console/decide", {"action": f"end-{role}", "model": "reward", "expected": "1"})
        assert fake.get_version("reward", "2").state == "stored"


@pytest.mark.parametrize("percent", ["", "0", "101", "nan", "many"])
async def test_share_that_is_none_is_refused(percent: str) -> None:
    async with console(busy_fake()) as browser:
        await browser.get("/console/decide")
        fields = {"action": "canary", "model": "reward", "version": "2", "expected": "1", "percent": percent}
        assert (await browser.post("/console/decide", fields)).status_code == 400


def fake_with_signals_of_one_person() -> FakeRewardloop:
    fake = busy_fake()
    for person in ("user-17", "other"):
        fake.record(Feedback.tie(prompt="Q", responses=["a", "b"], annotator_id=person))
    fake.taught = [TaughtVersion("reward", "2", True), TaughtVersion("policy", "2", False)]
    return fake


async def test_versions_that_learned_from_a_person_are_shown_before_anything_is_erased() -> None:
    fake = fake_with_signals_of_one_person()
    async with console(fake) as browser:
        await browser.get("/console/decide/erasure")
        page = await browser.post("/console/decide/erasure/taught", {"id": "user-17", "caller": ""})
        table = page.text.partition('id="taught-versions"')[2]
        assert "in the ledger: 1." in page.text
        assert table.index("learned from this person") < table.index("descends from a version that did")
        assert len(fake.events) == 2
        for wrong in ({"id": ""}, {"id": "a" * 129}):
            assert (await browser.post("/console/decide/erasure/taught", wrong)).status_code == 400


async def test_person_is_erased_once_the_id_is_written_again() -> None:
    fake = fake_with_signals_of_one_person()
    async with console(fake) as browser:
        await browser.get("/console/decide/erasure")
        for again in ("", "user-18", " user-17"):
            refused = await browser.post("/console/decide/erasure", {"id": "user-17", "again": again})
            assert refused.status_code == 400
        assert len(fake.events) == 2
        begun = await browser.post("/console/decide/erasure", {"id": "user-17", "again": "user-17"})
        assert begun.headers["location"] == "/console/decide/erasure/progress?erasure=erasure-1"
        page = await browser.get(begun.headers["location"])
        assert "The person is erased." in page.text
        assert "reward 2 learned from the person" in page.text
        assert (await browser.get("/console/decide/erasure/progress?erasure=never")).status_code == 404
    assert [event.annotator_id for event in fake.events] == ["other"]


async def test_page_asks_again_until_the_trainer_has_answered_and_ever_less_often() -> None:
    fake = fake_with_signals_of_one_person()
    answer = fake._list_taught_versions
    fake._answers[LIST_TAUGHT_VERSIONS] = lambda request: feedback_pb2.ListTaughtVersionsResponse()
    async with console(fake) as browser:
        await browser.get("/console/decide/erasure")
        page = await browser.post("/console/decide/erasure/taught", {"id": "user-17"})
        assert 'hx-trigger="load delay:1s' in page.text
        assert "Erase for good" not in page.text
        for pause, longer in (("1", "2"), ("16", "30"), ("30", "30"), ("x", "1")):
            fields = {"id": "user-17", "pause": pause}
            part = await browser.post("/console/decide/erasure/taught", fields, **{"hx-request": "true"})
            assert f"delay:{longer}s" in part.text
        fake._answers[LIST_TAUGHT_VERSIONS] = answer
        part = await browser.post("/console/decide/erasure/taught", fields, **{"hx-request": "true"})
        assert "<html" not in part.text
        assert "Erase for good" in part.text


async def test_people_are_muted_with_a_reason_and_heard_again() -> None:
    fake = busy_fake()
    async with console(fake) as browser:
        page = await browser.get("/console/people")
        assert page.text.index("spammer") < page.text.index("user-17")  # flagged people come first
        assert "answers faster than anybody reads" in page.text
        mute = {"caller": "shop", "id": "user-17", "muted": "yes", "reason": "a shared account"}
        assert (await browser.post("/console/people/mute", mute)).status_code == 303
        (person,) = [each for each in fake.operations.people().people if each.annotator_id == "user-17"]
        assert person.mute.reason.endswith(": a shared account")
        assert "a shared account" in (await browser.get("/console/people")).text
        await browser.post("/console/people/mute", {**mute, "muted": "no"})
        assert not any(each.HasField("mute") for each in fake.operations.people().people)


async def test_policies_answer_the_same_prompts_those_that_differ_most_first() -> None:
    fake = busy_fake()
    async with console(fake) as browser:
        await browser.get("/console/compare")
        body = {"prompts": "How?\n\nWhy?\nHow?", "version": ["1", "2"]}
        page = await browser.post("/console/compare/policy", body)
        assert page.text.count('aria-label="Prompt') == 2
        assert "answer 0: Why?" in page.text
        assert (await browser.post("/console/compare/policy", {"prompts": " ", "version": ["1"]})).status_code == 400
        many = "\n".join(map(str, range(21)))
        assert (await browser.post("/console/compare/policy", {"prompts": many, "version": ["1"]})).status_code == 400


async def test_comparing_needs_two_versions() -> None:
    fake = busy_fake()
    async with console(fake) as browser:
        await browser.get("/console/compare")
        for chosen in (["1"], ["1", "1"], []):
            refused = await browser.post("/console/compare/policy", {"prompts": "How?", "version": chosen})
            assert refused.status_code == 400
            assert "Choose 2 to 4 versions to compare." in refused.text


async def test_compare_says_that_one_version_in_memory_is_not_enough() -> None:
    async with console(FakeRewardloop()) as browser:
        page = await browser.get("/console/compare")
    assert "To compare it needs two" in page.text
    assert ">Ask<" not in page.text


async def test_a_policy_that_is_too_slow_takes_its_own_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = busy_fake()
    answered = fake._answer

    def answer(path: str, request: Any) -> Any:
        if path.endswith("/Generate") and request.pin_version == "2":
            raise DeadlineExceeded("the deadline is over")
        return answered(path, request)

    monkeypatch.setattr(fake, "_answer", answer)
    async with console(fake) as browser:
        await browser.get("/console/compare")
        page = await browser.post("/console/compare/policy", {"prompts": "How?", "version": ["1", "2"]})
    assert page.status_code == 200
    assert "The deadline is over" in page.text
    assert "answer 0: How?" in page.text


async def test_reward_models_that_contradict_each_other_come_first() -> None:
    fake = busy_fake()
    fake.set_shadow("reward", "2", share=0.5)
    async with console(fake) as browser:
        assert "One version of reward" in (await browser.get("/console/compare")).text
        fields = {"model": "reward", "one": "1", "other": "2", "prompts": "How?"}
        page = await browser.post("/console/compare/rewards", fields)
        assert "They prefer different answers to 0 of 1 prompts" in page.text
        same = await browser.post("/console/compare/rewards", {**fields, "other": "1"})
        assert same.status_code == 400


async def test_report_is_framed_without_rights() -> None:
    async with console(busy_fake()) as browser:
        page = await browser.get("/console/compare/reports/r1")
        assert '<iframe class="report"' in page.text
        assert " sandbox " in page.text
        framed = await browser.get("/console/compare/reports/r1/page")
        policy = framed.headers["content-security-policy"]
        assert policy.startswith("sandbox; default-src 'none'")
        assert "allow-scripts" not in policy


@pytest.mark.parametrize("path", ["/console/decide", "/console/decide/erasure", "/console/people/mute?id=user-17"])
async def test_viewer_sees_no_decision(path: str) -> None:
    fake = busy_fake()
    fake.identity = Identity("anna", frozenset({"view"}), is_open=True)
    async with console(fake) as browser:
        people = await browser.get("/console/people")
        assert people.status_code == 200
        assert "/console/people/mute" not in people.text
        assert "Put back" not in (await browser.get("/console/watch/letters")).text
        assert (await browser.get(path)).status_code == 403
        drop = await browser.post("/console/watch/letters/drop", {"letter": "1700000000001-0", "sure": "yes"})
        assert drop.status_code == 403
        assert len(fake.loop.letters) == 2


async def test_loop_without_trainer_rounds_or_people_is_shown_as_it_is() -> None:
    fake = busy_fake()
    fake.loop.status.Clear()
    fake.loop.rounds, fake.loop.letters, fake.loop.reports = [], [], []
    fake.loop.crowd = pb.Crowd()
    async with console(fake) as browser:
        for path in (
            "/console/watch",
            "/console/watch/letters",
            "/console/compare",
            "/console/decide",
            "/console/people",
        ):
            assert (await browser.get(path)).status_code == 200
