"""The observer measures live versions through the client, on questions that the users never ask."""

import math
import random

import pytest

from rewardloop_client.fake import FakeRewardloop
from rewardloop_demo.observer import Observer
from rewardloop_demo.record import RoundRecord
from rewardloop_demo.taste import Taste
from rewardloop_local import corpus

PROMPTS = [q.text for q in corpus.questions(0, held_out=True)][:240]
START = RoundRecord(0, 0.0, 0, "1", 0.5, "1", 0.5, 0.5, 0.5)


class _World:
    """A server whose policy and reward model can be made better."""

    def __init__(self) -> None:
        self.taste, self.chance = Taste(0), random.Random(0)
        self.is_good_policy = self.is_good_reward = False
        self.fake = FakeRewardloop(score=self._score, generate=self._say)

    def _say(self, prompt: str, index: int) -> str:
        question = corpus.question_of(prompt)
        style = corpus.Style() if self.is_good_policy else corpus.random_style(question, self.chance)
        return corpus.answer(question, style, self.chance)

    def _score(self, prompt: str, response: str) -> float:
        return self.taste.utility(prompt, response) if self.is_good_reward else self.chance.random()

    def promote(self, model: str, version: str) -> None:
        self.fake.add_version(model, version)
        self.fake.promote(model, version)

    async def observer(self, prompts: list[str]) -> Observer:
        observer = Observer(self.fake.as_async(), self.taste, prompts, 0)
        await observer.begin()
        return observer


async def test_a_better_reward_model_shows_by_how_much_it_is_better_on_the_same_choices() -> None:
    world = _World()
    observer = await world.observer(PROMPTS)
    first, none = await observer.reward_accuracy()
    assert none is None
    assert await observer.measure(START) is None
    world.is_good_reward = True
    world.promote("reward", "2")
    found = await observer.measure(START)
    assert found is not None
    assert (found.reward_version, found.reward_swaps, found.policy_swaps) == ("2", 1, 0)
    assert found.reward_change == pytest.approx(found.reward_accuracy - first.mean)
    assert 0.1 < found.reward_change_low < found.reward_change < found.reward_change_high
    assert found.reward_accuracy == pytest.approx(observer.ceiling, abs=0.05)
    assert math.isnan(found.win_rate)


async def test_the_last_policy_is_measured_on_more_prompts_than_those_before_it() -> None:
    world = _World()
    observer = await world.observer(PROMPTS)
    world.is_good_policy = True
    world.promote("policy", "2")
    between = await observer.measure(START)
    assert between is not None
    assert (between.policy_version, between.win_prompts) == ("2", 200)
    last = await observer.measure_last(between)
    assert last is not None
    assert last.win_prompts == len(PROMPTS)
    assert last.win_low > 0.7
    assert last.win_high - last.win_low < between.win_high - between.win_low


async def test_a_policy_that_is_replaced_while_it_is_measured_is_not_measured() -> None:
    world = _World()
    observer = await world.observer(PROMPTS[:20])
    world.promote("policy", "2")
    between = await observer.measure(START)
    assert between is not None
    world.promote("policy", "3")
    assert await observer.measure_last(between) is None
