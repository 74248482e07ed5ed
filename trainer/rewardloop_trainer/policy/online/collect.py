"""Collects what a step learns from: its prompts, the responses that are sampled to them, and their rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.policy.online.sampler import SampleCall, Sampler
from rewardloop_trainer.policy.online.shaping import Shaping
from rewardloop_trainer.policy.online.update import SEED_PRIME
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Rollout, Sampling

Score: TypeAlias = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Sequence[Sequence[Reward | None]]]


@dataclass(frozen=True, slots=True)
class Collected:
    """The responses of one step in all processes.

    Attributes:
        groups: The responses to each prompt.
        scored: The scoring service's verdicts; None for an empty response.
        rewards: The shaped rewards.
        age: How many steps older than the learning policy the weights were that sampled.
        batches: How many batches of prompts were sampled for it.
    """

    groups: Sequence[Sequence[Rollout]]
    scored: Sequence[Sequence[Reward | None]]
    rewards: Sequence[Sequence[float]]
    age: int
    batches: int = 1

    @property
    def rollouts(self) -> list[Rollout]:
        """All responses; those to one prompt are next to each other."""
        return [rollout for group in self.groups for rollout in group]

    @property
    def verdicts(self) -> list[Reward]:
        """The verdicts on all responses that were scored."""
        return [reward for group in self.scored for reward in group if reward is not None]

    def differing(self) -> list[int]:
        """Indices of the groups whose rewards are not all the same."""
        return [i for i, rewards in enumerate(self.rewards) if max(rewards) - min(rewards) > 1e-6]

    def chosen(self, indices: Sequence[int]) -> Collected:
        """The groups of these indices alone."""
        return Collected(
            [self.groups[i] for i in indices],
            [self.scored[i] for i in indices],
            [self.rewards[i] for i in indices],
            self.age,
            self.batches,
        )

    def joined(self, other: Collected) -> Collected:
        """The groups of both."""
        return Collected(
            [*self.groups, *other.groups],
            [*self.scored, *other.scored],
            [*self.rewards, *other.rewards],
            max(self.age, other.age),
            self.batches + other.batches,
        )


class Collector:
    """Samples and scores the responses of a run's steps."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampler: Sampler,
        score: Score,
        shaping: Shaping,
        world: World,
        settings: OnlineSettings,
        seed: int,
        *,
        resamples: bool = False,
    ) -> None:
        """Set up; ``resamples``: whether other prompts replace those whose responses all have the same reward."""
        self._prompts, self._sampler, self._score, self._shaping = prompts, sampler, score, shaping
        self._world, self._settings, self._seed, self._resamples = world, settings, seed, resamples

    def collect(self, step: int, temperature: float, stop_if_asked: Callable[[], None]) -> Collected:
        """Collect the responses of a step.

        With resampling, these are the groups whose rewards differ, from as many batches as are allowed; the first batch
        if there is no such group.

        Args:
            step: The step, from 0.
            temperature: What the logits are divided by.
            stop_if_asked: Called now and then; may raise to stop.

        Raises:
            ValueError: If the weights that sampled are older than the settings allow.
        """
        found = self._batch(step, 0, temperature, stop_if_asked)
        if not self._resamples:
            return found
        wanted, first = self._settings.prompts, found
        for number in range(1, self._settings.max_batches):
            if len(found.differing()) >= wanted:
                break
            found = found.joined(self._batch(step, number, temperature, stop_if_asked))
        differing = found.differing()[:wanted]
        return found.chosen(differing) if differing else replace(first, batches=found.batches)

    def sampled(self, step: int, temperature: float, stop_if_asked: Callable[[], None]) -> tuple[list[Rollout], int]:
        """Sample the responses of a step without scoring them.

        Args as for `collect`, which raises the same.

        Returns:
            The responses of all processes, those to one prompt next to each other, and the age of the weights.
        """
        _, said, age = self._said(step, 0, temperature, stop_if_asked)
        return [rollout for group in self._world.gather(said) for rollout in group], age

    def _batch(self, step: int, number: int, temperature: float, stop_if_asked: Callable[[], None]) -> Collected:
        """The responses of one batch of a step; number 0 has the prompts whose turn it is, others have random ones."""
        prompts, said, age = self._said(step, number, temperature, stop_if_asked)
        scored = self._score(prompts, [[r.text for r in group] for group in said])
        whole = self._world.gather(list(zip(said, scored, strict=True)))
        groups, verdicts = [g for g, _ in whole], [r for _, r in whole]
        return Collected(groups, verdicts, self._shaping.shape(groups, verdicts), age)

    def _said(
        self, step: int, number: int, temperature: float, stop_if_asked: Callable[[], None]
    ) -> tuple[list[Prompt], Sequence[Sequence[Rollout]], int]:
        """This process's prompts of a batch, its responses to them, and the age of the weights that sampled."""
        settings = self._settings
        chosen = self._chosen(step) if number == 0 else self._drawn(step, number)
        indices = self._world.mine(range(len(chosen)))
        prompts = [self._prompts[chosen[index]] for index in indices]
        places = [number * settings.prompts + index for index in indices]
        sampling = Sampling(settings.responses, settings.max_new_tokens, self._seed * SEED_PRIME + step, temperature)
        call = SampleCall(step, prompts, places, sampling)
        # Asking the others whether to stop needs all processes at once, but they sample different numbers of batches.
        # So only a process that is alone can stop between batches.
        said = self._sampler.sample(call, stop_if_asked if self._world.size == 1 else lambda: None)
        age = step - said.step
        if age > settings.max_age:
            raise ValueError(f"the responses are from weights {age} steps old; at most {settings.max_age} are allowed")
        return prompts, said.groups, age

    def _chosen(self, step: int) -> list[int]:
        """Indices of the step's prompts. The run passes over all prompts repeatedly, each time in another order."""
        count = len(self._prompts)
        first = step * self._settings.prompts
        numbers = range(first, first + self._settings.prompts)
        orders = {epoch: self._order(epoch) for epoch in range(numbers[0] // count, numbers[-1] // count + 1)}
        return [orders[number // count][number % count] for number in numbers]

    def _drawn(self, step: int, number: int) -> list[int]:
        generator = torch.Generator().manual_seed((self._seed * SEED_PRIME + step) * 1_009 + number)
        drawn: list[int] = torch.randint(len(self._prompts), (self._settings.prompts,), generator=generator).tolist()
        return drawn

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self._seed * SEED_PRIME + epoch)
        order: list[int] = torch.randperm(len(self._prompts), generator=generator).tolist()
        return order
