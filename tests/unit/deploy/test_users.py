"""Simulated users record every kind of signal, judged by their taste, and live through a server that refuses."""

import asyncio
import random
from collections import Counter

import pytest

from rewardloop_client import InvalidRequest, QueueFull, Unreachable
from rewardloop_client.fake import FakeRewardloop
from rewardloop_demo.taste import Taste, read
from rewardloop_demo.users import SimulatedUsers, evaluate, first_texts
from rewardloop_local import corpus

PROMPTS = [q.text for q in corpus.questions(0)][:100]


def _answering(seed: int = 0) -> FakeRewardloop:
    rng = random.Random(seed)

    def say(prompt: str, index: int) -> str:
        question = corpus.question_of(prompt)
        return corpus.answer(question, corpus.random_style(question, rng), rng)

    return FakeRewardloop(generate=say, max_attempts=1)


def _users(fake: FakeRewardloop, taste: Taste | None = None) -> SimulatedUsers:
    return SimulatedUsers(fake.as_async(), taste or Taste(0), PROMPTS, rate=1e6, concurrency=4, seed=1)


async def test_all_kinds_of_signals_are_recorded_in_about_the_promised_shares() -> None:
    fake = _answering()
    users = _users(fake)
    await users.run(1_500)
    kinds = Counter(str(e.WhichOneof("signal")) for e in fake.events)
    assert users.recorded == kinds
    assert 1_500 <= users.total == len(fake.events) < 1_510
    share = {kind: count / len(fake.events) for kind, count in kinds.items()}
    assert share["choice"] > 0.7
    assert share["thumb"] == pytest.approx(0.08, abs=0.03)
    assert share["ranking"] == pytest.approx(0.05, abs=0.03)
    assert share["rating"] == pytest.approx(0.04, abs=0.03)
    assert share["edit"] == pytest.approx(0.03, abs=0.02)
    assert 0 < share["tie"] < 0.05
    assert all(e.generation_id and not e.responses for e in fake.events)


async def test_choices_agree_with_the_taste_as_often_as_its_noise_allows() -> None:
    fake, taste = _answering(), Taste(2)
    await _users(fake, taste).run(1_500)
    pairs, agreed = [], []
    for event in fake.events:
        if event.WhichOneof("signal") == "choice":
            generation = fake.generations[event.generation_id]
            prompt = generation.prompt.text
            chosen, rejected = (generation.candidates[i].text for i in (event.choice.chosen, event.choice.rejected))
            pairs.append((prompt, chosen, rejected))
            gap = taste.utility(prompt, chosen) - taste.utility(prompt, rejected)
            agreed.append(0.5 if gap == 0 else float(gap > 0))
    assert sum(agreed) / len(agreed) == pytest.approx(taste.agreement_ceiling(pairs), abs=0.04)


async def test_edits_are_right_and_polite_and_thumbs_favour_what_is_liked() -> None:
    fake, taste = _answering(), Taste(0)
    await _users(fake, taste).run(2_000)
    thumbs: dict[bool, list[float]] = {True: [], False: []}
    for event in fake.events:
        generation = fake.generations[event.generation_id]
        prompt, first = generation.prompt.text, generation.candidates[0].text
        if event.WhichOneof("signal") == "edit":
            seen = read(prompt, event.edit.edited_text)
            assert seen.is_right
            assert seen.is_polite
        if event.WhichOneof("signal") == "thumb":
            thumbs[event.thumb.up].append(taste.utility(prompt, first))
    assert min(len(found) for found in thumbs.values()) > 20
    assert sum(thumbs[True]) / len(thumbs[True]) > sum(thumbs[False]) / len(thumbs[False]) + 0.5


async def test_annotators_have_one_channel_each() -> None:
    fake = _answering()
    await _users(fake).run(2_000)
    channels: dict[str, set[str]] = {}
    for event in fake.events:
        channels.setdefault(event.annotator_id, set()).add(event.tags["channel"])
    assert len(channels) == 120
    assert {frozenset(c) for c in channels.values()} == {frozenset({"web"}), frozenset({"mobile"})}


async def test_same_candidates_are_never_compared() -> None:
    fake = FakeRewardloop(generate=lambda prompt, index: "The same answer to everything.")
    users = _users(fake)
    await users.run(40)
    assert {str(e.WhichOneof("signal")) for e in fake.events} <= {"thumb", "rating", "edit"}
    assert users.skipped > 40


async def test_users_wait_while_the_server_refuses_and_lose_nothing() -> None:
    fake = _answering()
    fake.fail("generate", Unreachable("away"), times=5)
    fake.fail("record", QueueFull("busy", retry_after_s=0.01), times=3)
    users = _users(fake)
    await users.run(50)
    assert users.refused == 8
    assert users.total == len(fake.events) >= 50


async def test_a_refusal_that_will_not_pass_ends_the_run() -> None:
    fake = _answering()
    fake.fail("generate", InvalidRequest("no"), times=1)
    with pytest.raises(ExceptionGroup) as caught:
        await _users(fake).run(50)
    assert caught.group_contains(InvalidRequest)


async def test_a_run_without_goal_goes_on_until_cancelled() -> None:
    users = _users(_answering())
    task = asyncio.create_task(users.run())
    while users.total < 20:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_rate_is_kept() -> None:
    fake = _answering()
    users = SimulatedUsers(fake.as_async(), Taste(0), PROMPTS, rate=100, concurrency=4)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await users.run(40)
    assert loop.time() - started > 0.3


async def test_evaluation_answers_prompts_in_their_order() -> None:
    fake = FakeRewardloop(generate=lambda prompt, index: f"{index} {prompt}")
    found = await evaluate(fake.as_async(), PROMPTS, k=2, concurrency=7)
    assert first_texts(found) == [f"0 {p}" for p in PROMPTS]
    assert all(len(g.candidates) == 2 for g in found)


def test_users_without_prompts_or_with_no_rate_are_refused() -> None:
    client = FakeRewardloop().as_async()
    with pytest.raises(ValueError, match="no prompts"):
        SimulatedUsers(client, Taste(0), [])
    with pytest.raises(ValueError, match="rate"):
        SimulatedUsers(client, Taste(0), PROMPTS, rate=0)


async def test_thumbs_can_be_asked_for_in_another_share() -> None:
    fake = _answering()
    users = SimulatedUsers(fake.as_async(), Taste(0), PROMPTS, rate=1e6, concurrency=4, thumb_share=0.5, seed=1)
    await users.run(1_000)
    assert users.recorded["thumb"] / users.total == pytest.approx(0.5, abs=0.06)
    assert users.recorded["choice"] / users.total == pytest.approx(0.33, abs=0.06)
