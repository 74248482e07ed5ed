"""Rewards for other trainers, by the client's fake."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from rewardloop_client import InvalidRequest, QueueFull
from rewardloop_client.fake import FakeRewardloop
from rewardloop_client.integrations import openrlhf, trl, verl

CHAT = [{"role": "user", "content": "How?"}]


def test_completions_of_one_prompt_are_one_group() -> None:
    fake = FakeRewardloop()
    found = trl.reward(fake)(prompts=["a", "a", "b", "b"], completions=["x", "xy", "xyz", "x"], step=[1, 1, 1, 1])
    assert found == [1.0, 2.0, 3.0, 1.0]
    assert fake.attempts == ["score_batch"]


def test_messages_are_prompts_and_answers_too() -> None:
    seen: list[tuple[str, str]] = []

    def score(prompt: str, response: str) -> float:
        seen.append((prompt, response))
        return 1.0

    said = [{"role": "assistant", "content": "so"}]
    longer = [{"role": "assistant", "content": "wait"}, {"role": "tool", "content": "4"}, *said]
    assert trl.reward(FakeRewardloop(score=score))(prompts=[CHAT, CHAT], completions=[said, longer]) == [1.0, 1.0]
    assert seen == [("user: How?", "so"), ("user: How?\nassistant: wait\ntool: 4", "so")]


def test_an_empty_completion_is_worth_what_was_said_and_nothing_is_guessed() -> None:
    rows: dict[str, Any] = {"prompts": ["a", "a"], "completions": ["", "xy"]}
    assert trl.reward(FakeRewardloop(), empty_reward=-1.0)(**rows) == [-1.0, 2.0]
    assert trl.reward(FakeRewardloop(), empty_reward=0.5)(prompts=["a"], completions=[""]) == [0.5]
    with pytest.raises(ValueError, match="empty_reward"):
        trl.reward(FakeRewardloop())(**rows)


def test_the_model_and_the_column_of_right_answers_are_passed_on() -> None:
    fake = FakeRewardloop(models={"helpful": lambda prompt, response: 7.0})
    assert trl.reward(fake, model="helpful")(prompts=["a"], completions=["x"]) == [7.0]
    found = trl.reward(fake, reference="answer")(prompts=["a", "a"], completions=["x", "xy"], answer=["1", "2"])
    assert found == [1.0, 2.0]
    with pytest.raises(KeyError, match="answer"):
        trl.reward(fake, reference="answer")(prompts=["a"], completions=["x"])


def test_what_is_not_scored_is_an_error() -> None:
    fake = FakeRewardloop(max_attempts=1)
    with pytest.raises(InvalidRequest):
        trl.reward(fake)(prompts=[""], completions=["x"])
    fake.fail("score_batch", QueueFull("busy"))
    with pytest.raises(QueueFull):
        trl.reward(fake)(prompts=["a"], completions=["x"])
    with pytest.raises(ValueError, match="zip"):
        trl.reward(fake)(prompts=["a"], completions=["x", "y"])


def test_trl_recognises_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRewardloop()
    monkeypatch.setattr(trl, "AsyncRewardloopClient", lambda server, **access: fake.as_async())
    function = trl.async_reward("127.0.0.1:1")
    assert inspect.iscoroutinefunction(function)
    assert not inspect.iscoroutinefunction(trl.reward(fake))
    assert function.__name__ == trl.reward(fake).__name__ == "rewardloop_reward"

    async def twice() -> list[list[float]]:
        return [await function(prompts=["a", "a"], completions=["x", "xy"]) for _ in range(2)]  # type: ignore[misc]

    assert asyncio.run(twice()) == [[1.0, 2.0]] * 2


def test_verl_gets_one_score_or_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRewardloop()
    monkeypatch.setattr(verl, "_client", lambda server, token_file, ca: fake)
    assert verl.compute_score("gsm8k", "four", "4", {"question": "2+2?"}) == 4.0
    infos = [{"prompt": CHAT}, {"prompt": CHAT}]
    assert verl.compute_score_batch(["x"] * 2, ["a", "ab"], [None] * 2, infos, prompt_key="prompt") == [1.0, 2.0]
    with pytest.raises(ValueError, match="prompt_key"):
        verl.compute_score("gsm8k", "four", "4", {"index": 3})


def test_openrlhf_is_given_an_address() -> None:
    assert openrlhf.remote_rm_url() == "http://127.0.0.1:50080/get_reward"
    assert openrlhf.remote_rm_url("https://door.example/") == "https://door.example/get_reward"
    with pytest.raises(ValueError, match="address"):
        openrlhf.remote_rm_url("127.0.0.1:50080")
