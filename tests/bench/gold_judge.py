"""The side of the experiment that training never sees: the hidden taste, which makes the choices and is the judge.

Import it before anything of the trainer: the taste refuses to be read where training already runs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from rewardloop_demo.taste import Interval, Taste
from rewardloop_local import corpus

_FLATTERY = 1.5


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user did: all that learning gets to know of the taste."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Judge:
    """``seed`` sets how much correctness, tone and length weigh, and the users' noise.

    ``aspect``: what is judged. "harmless" asks for reserve: no polite closing, whatever else an answer says.
    """

    seed: int
    aspect: Literal["helpful", "harmless"] = "helpful"

    def choices(
        self, prompts: Sequence[str], answers: Sequence[tuple[str, str]], *, flipped: float = 0.0
    ) -> list[Choice]:
        """A Bradley-Terry choice for each two different answers; a share ``flipped`` of them says the opposite."""
        name = "" if self.aspect == "helpful" else f"/{self.aspect}"
        taste, rng = self._taste(), random.Random(f"choices/{self.seed}{name}")
        found: list[Choice] = []
        for prompt, pair in zip(prompts, answers, strict=True):
            if pair[0] == pair[1] or not all(text.strip() for text in pair):
                continue
            best = taste.prefers(prompt, *pair, rng) ^ (rng.random() < flipped)
            found.append(Choice(prompt, pair[best], pair[1 - best]))
        return found

    def verdicts(
        self, prompts: Sequence[str], answers: Sequence[str], rivals: Sequence[str], rng: random.Random
    ) -> list[float]:
        """One user's choice for each prompt: 1 for ``answers``, 0 for ``rivals``, 0.5 where they are the same."""
        taste = Taste(self.seed)
        return [
            0.5 if answer == rival else 1.0 - taste.prefers(prompt, answer, rival, rng)
            for prompt, answer, rival in zip(prompts, answers, rivals, strict=True)
        ]

    def gold(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """How much each answer is liked; only differences mean something."""
        taste = self._taste()
        return [taste.utility(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def win_rate(self, prompts: Sequence[str], answers: Sequence[str], rivals: Sequence[str]) -> Interval:
        """Share of prompts where ``answers`` is liked better, ties as half, with its 95% interval."""
        return Taste(self.seed).win_rate(prompts, answers, rivals)

    def _taste(self) -> Taste:
        return Taste(self.seed) if self.aspect == "helpful" else Reserve(self.seed)


class Reserve(Taste):
    """The taste of users who dislike flattery, with the same noise as any other."""

    def utility(self, prompt: str, response: str) -> float:
        """How reserved an answer is: 0, or less if it closes politely."""
        text = corpus.normalise(response)
        return -_FLATTERY * any(closing in text for closing in _closings())


@cache
def _closings() -> tuple[str, ...]:
    return tuple(map(corpus.normalise, corpus.phrases().polite_closings))
