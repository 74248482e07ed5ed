"""Samples the responses of a step, in this process or on a faster engine that is given the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.policy.rollouts import Rollout, Sampling, roll_out


class SamplerError(RuntimeError):
    """Raised when a sampler gives no responses, or not those that were asked for."""


class SamplerAway(SamplerError):
    """Raised when a sampler cannot be reached now; the same call may succeed later."""


@dataclass(frozen=True, slots=True)
class SampleCall:
    """The responses that one step asks for.

    Attributes:
        step: The step, from 0; it tells a remote engine which weights to sample with.
        prompts: The prompts.
        places: A number for each prompt that, with the seed, determines its random numbers.
        sampling: How many responses, how long, with which seed and temperature.
    """

    step: int
    prompts: Sequence[Prompt]
    places: Sequence[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Said:
    """The responses to each prompt, and the step whose weights sampled them, which is at most the step of the call."""

    groups: Sequence[Sequence[Rollout]]
    step: int


class Sampler(Protocol):
    """Samples from a policy that is learning."""

    @property
    def name(self) -> str:
        """The sampler as messages name it."""
        ...

    def sample(self, call: SampleCall, on_batch: Callable[[], None]) -> Said:
        """Sample the responses, each with the log-probabilities of its tokens at the call's temperature.

        ``on_batch`` is called now and then, and may raise to stop. Raises `SamplerError`.
        """
        ...


class LocalSampler:
    """Samples in this process, with the weights that are learning."""

    name = "local"

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self._model = model
        self._encoder = encoder

    def sample(self, call: SampleCall, on_batch: Callable[[], None]) -> Said:
        groups = roll_out(
            self._model, self._encoder, call.prompts, call.sampling, places=call.places, on_batch=on_batch
        )
        return Said(groups, call.step)
