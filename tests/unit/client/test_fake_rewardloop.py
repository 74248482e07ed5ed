"""The fake behaves as the contract says, through the client's own code."""

from __future__ import annotations

import asyncio

import pytest

from rewardloop_client import (
    EventIdConflict,
    Feedback,
    InvalidRequest,
    NotFound,
    NothingToRollBack,
    PromotionHeld,
    QueueFull,
    RedisUnavailable,
    RewardloopClient,
    ScoreGroup,
    UnknownGeneration,
    UnknownVersion,
)
from rewardloop_client.fake import FakeRewardloop


def test_it_is_a_client_that_scores_by_the_given_function() -> None:
    fake = FakeRewardloop(score=lambda prompt, response: float(prompt in response))
    assert isinstance(fake, RewardloopClient)
    assert fake.score("yes", ["no", "oh yes"]).values == (0, 1)
    assert FakeRewardloop().score("p", ["a", "abc"]).best == 1


def test_bad_items_of_a_batch_or_stream_fail_alone() -> None:
    fake = FakeRewardloop()
    groups = [("p", ["a"]), ("", ["a"]), ("p", []), ("p", [""]), ScoreGroup("p", ["ab"], min_version=9)]
    expected = [None, "prompt", "responses", "responses[0]", None]
    for outcomes in (fake.score_batch(groups), list(fake.score_stream(groups))):
        fields = [o.violations[0].field if isinstance(o, InvalidRequest) else None for o in outcomes]
        assert fields == expected
        assert isinstance(outcomes[4], UnknownVersion)


def test_injected_failures_run_through_the_clients_retries() -> None:
    fake = FakeRewardloop()
    fake.fail("score", QueueFull("busy", retry_after_s=0.5), times=3)
    assert fake.score("p", ["a"]).values == (1,)
    assert fake.attempts == ["score"] * 4
    fake.fail("rollback", RedisUnavailable("away"))
    with pytest.raises(RedisUnavailable):
        fake.rollback("reward")


def test_feedback_is_kept_once_and_by_the_rules() -> None:
    fake = FakeRewardloop()
    event = Feedback.choice(prompt="p", responses=["a", "b"], chosen=0, rejected=1, event_id="e")
    assert [r.duplicate for r in fake.record_batch([event, event])] == [False, True]
    with pytest.raises(EventIdConflict):
        fake.record(Feedback.choice(prompt="p", responses=["a", "b"], chosen=1, rejected=0, event_id="e"))
    wrong = [
        Feedback.choice(prompt="p", responses=["a", "b"], chosen=0, rejected=2),
        Feedback.choice(prompt="p", responses=["a", "b"], chosen=1, rejected=1),
        Feedback.ranking(prompt="p", responses=["a", "b"], order=[0, 0]),
        Feedback.rating(prompt="p", responses=["a"], value=float("nan"), minimum=0, maximum=1),
        Feedback.edit(prompt="p", responses=["a"], edited_text="a"),
        Feedback.thumb(prompt="", responses=["a"], up=True),
        Feedback.thumb(prompt="p", responses=[], up=True),
        Feedback.thumb(prompt=[{"role": "robot", "content": "x"}], responses=["a"], up=True),
        Feedback.thumb(prompt="p", responses=["a"], up=True, event_id="x" * 129),
        Feedback.thumb(prompt="p", responses=["a"], up=True, tags={"k" * 65: "v"}),
    ]
    assert all(isinstance(o, InvalidRequest) for o in fake.record_batch(wrong))
    assert [e.event_id for e in fake.events] == ["e"]


def test_feedback_may_name_a_generation() -> None:
    fake = FakeRewardloop(generate=lambda prompt, index: f"{prompt}{index}")
    answer = fake.generate("q", candidates=2)
    assert [c.text for c in answer.candidates] == ["q0", "q1"]
    assert fake.record(Feedback.choice(generation_id=answer.generation_id, chosen=1, rejected=0)).stream_id
    with pytest.raises(InvalidRequest):
        fake.record(Feedback.choice(generation_id=answer.generation_id, chosen=2, rejected=0))
    with pytest.raises(UnknownGeneration):
        fake.record(Feedback.choice(generation_id="other", chosen=1, rejected=0))


def test_versions_are_promoted_and_rolled_back() -> None:
    fake = FakeRewardloop(versions={"reward": ["1", "2"], "policy": []})
    fake.add_version("reward", "3")
    assert fake.get_version("reward").version == "2"
    assert fake.promote("reward", "3").previous_version == "2"
    assert [(v.version, v.state) for v in fake.list_versions("reward")] == [
        ("3", "active"),
        ("2", "stored"),
        ("1", "stored"),
    ]
    assert fake.score("p", ["a"]).model_version.version == "3"
    assert fake.rollback("reward").version.version == "2"
    with pytest.raises(NothingToRollBack):
        fake.rollback("reward")
    with pytest.raises(UnknownVersion):
        fake.promote("reward", "9")
    with pytest.raises(UnknownVersion):
        fake.get_version("policy")
    assert next(fake.watch_versions("reward")).version == "2"
    assert fake.wait_until_active("reward", "2").version == "2"


def test_canary_and_shadow_follow_the_servers_rules() -> None:
    fake = FakeRewardloop(versions={"reward": ["1", "2", "3"]})
    fake.promote("reward", "1")
    canary = fake.set_canary("reward", "2", share=0.3)
    shadow = fake.set_shadow("reward", "3", share=1.0)
    assert canary is not None
    assert shadow is not None
    assert [v.state for v in fake.list_versions("reward")] == ["shadow", "canary", "active"]
    by = {prompt: fake.score(prompt, ["a"]).model_version.version for prompt in (f"p {i}" for i in range(500))}
    assert by == {prompt: fake.score(prompt, ["a"]).model_version.version for prompt in by}
    assert set(by.values()) == {"1", "2"}
    assert 100 < sum(version == "2" for version in by.values()) < 200
    for version, share in (("1", 0.5), ("2", 0.0), ("2", 1.0), ("2", float("nan"))):
        with pytest.raises(InvalidRequest):
            fake.set_canary("reward", version, share=share)
    with pytest.raises(UnknownVersion):
        fake.set_shadow("reward", "9", share=0.5)
    with pytest.raises(InvalidRequest):
        fake.set_shadow("policy", "1", share=0.5)
    assert fake.set_shadow("reward", None) is None
    fake.promote("reward", "3")
    assert [v.state for v in fake.list_versions("reward")] == ["active", "stored", "stored"]


def test_health_is_told_by_service() -> None:
    fake = FakeRewardloop()
    fake.services["rewardloop.v1.RewardService"] = False
    assert (fake.health(), fake.health("rewardloop.v1.RewardService")) == (True, False)
    with pytest.raises(NotFound):
        fake.health("other")


async def test_the_asyncio_face_shares_the_state() -> None:
    fake = FakeRewardloop()
    client = fake.as_async()
    await client.record(Feedback.thumb(prompt="p", responses=["a"], up=True))
    assert len(fake.events) == 1
    results = await asyncio.gather(*(client.score("p", ["x" * n]) for n in (1, 2)))
    assert [r.values[0] for r in results] == [1, 2]
    assert [o.values[0] async for o in client.score_stream([("p", ["abc"])])] == [3]
    assert (await anext(client.watch_versions("policy"))).version == "1"


def test_the_best_of_n_are_shown_by_the_score_function_and_the_choice_is_told() -> None:
    fake = FakeRewardloop(score=lambda prompt, text: -float(text[-1]), generate=lambda prompt, i: f"answer {i}")
    answer = fake.generate("Hi", candidates=2, best_of=5)
    assert [(c.text, c.score) for c in answer.candidates] == [("answer 0", 0.0), ("answer 1", -1.0)]
    assert answer.chosen is not None
    assert (answer.chosen.selection, answer.chosen.sampled, answer.chosen.set_probability) == ("best", 5, 1.0)
    pair = fake.generate("Hi", candidates=2, best_of=5, selection="informative", random_share=0.5, seed=1)
    assert pair.chosen is not None
    assert (pair.chosen.random_share, pair.chosen.set_probability) == (0.5, 0.1)
    assert len(fake.generations[pair.generation_id].candidates) == 2
    assert fake.generate("Hi").chosen is None
    for wrong in ({"best_of": 65}, {"selection": "best"}, {"best_of": 3, "selection": "informative"}):
        with pytest.raises(InvalidRequest):
            fake.generate("Hi", **wrong)  # type: ignore[arg-type]


def test_fake_refuses_to_leaders_what_a_person_rejected() -> None:
    fake = FakeRewardloop(versions={"reward": ["1", "2"]})
    fake.promote("reward", "1")
    fake.promote("reward", "2", leader_epoch=1)
    fake.rollback("reward")
    for _ in range(2):
        with pytest.raises(PromotionHeld):
            fake.promote("reward", "2", leader_epoch=1)
        fake.promote("reward", "1")  # a person keeps it, which ends the hold
    fake.promote("reward", "2")
    fake.promote("reward", "1")
    fake.promote("reward", "2", leader_epoch=1)


def test_named_models_have_scores_and_versions_of_their_own() -> None:
    fake = FakeRewardloop(models={"harmless": lambda prompt, response: -float(len(response))})
    assert fake.models() == ("reward", "policy", "harmless")
    assert fake.score("q", ["a", "bb"]).best == 1
    assert fake.score("q", ["a", "bb"], model="harmless").best == 0
    assert fake.generate("q", best_of=2, reward_model="harmless").chosen.reward_model == "harmless"
    fake.add_version("harmless", "2")
    fake.promote("harmless", "2")
    assert (fake.get_version("harmless").version, fake.get_version("reward").version) == ("2", "1")
    for call in (lambda: fake.score("q", ["a"], model="love"), lambda: fake.generate("q", reward_model="harmless")):
        with pytest.raises(InvalidRequest):
            call()
    event = Feedback.thumb(up=True, prompt="q", responses=["a"], aspect="harmless")
    assert fake.record(event).stream_id
    assert fake.events[0].aspect == "harmless"
    with pytest.raises(InvalidRequest):
        fake.record(Feedback.thumb(up=True, prompt="q", responses=["a"], aspect="No Name"))
