"""Where a step's answers come from: this process's weights, or a faster engine that follows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.policy.rollouts import Rollout, roll_out


@dataclass(frozen=True, slots=True)
class SampleCall:
    """What one step asks for. ``places``: what the prompts' random numbers go with, beside the seed."""

    step: int
    prompts: Sequence[Prompt]
    places: Sequence[int]
    responses: int
    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Said:
    """The answers to each prompt, and the step whose weights gave them: at most that of the call."""

    groups: Sequence[Sequence[Rollout]]
    step: int


class Sampler(Protocol):
    """Samples from a policy that moves."""

    def sample(self, call: SampleCall, on_batch: Callable[[], None]) -> Said:
        """``on_batch`` is called now and then, and may raise to stop."""
        ...


class LocalSampler:
    """With the very weights that learn."""

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self._model = model
        self._encoder = encoder

    def sample(self, call: SampleCall, on_batch: Callable[[], None]) -> Said:
        groups = roll_out(
            self._model,
            self._encoder,
            call.prompts,
            responses=call.responses,
            max_new_tokens=call.max_new_tokens,
            seed=call.seed,
            temperature=call.temperature,
            places=call.places,
            on_batch=on_batch,
        )
        return Said(groups, call.step)
