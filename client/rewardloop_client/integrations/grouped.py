"""Turns a trainer's rows of prompt and completion into groups, of which each is scored together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rewardloop_client._errors import RewardloopError
from rewardloop_client._types import ScoreGroup, ScoreResult

# A text, or messages as Hugging Face writes them.
Text: TypeAlias = str | Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Groups:
    """The groups of a batch, and where each row's reward comes from.

    Attributes:
        groups: What to score.
        places: For each row the index of its group and of its response there; None for an empty completion.
    """

    groups: list[ScoreGroup] = field(default_factory=list)
    places: list[tuple[int, int] | None] = field(default_factory=list)

    @classmethod
    def of(
        cls, prompts: Sequence[Text], completions: Sequence[Text], references: Iterable[Any] | None, model: str
    ) -> Groups:
        """Group rows that follow one another with the same prompt.

        Raises:
            ValueError: There is not one completion for each prompt, or a completion ends with no text.
        """
        found = cls()
        before: tuple[Any, str] | None = None
        given = list(references) if references is not None else [""] * len(prompts)
        for prompt, completion, reference in zip(prompts, completions, given, strict=True):
            asked, said = _parted(prompt, completion)
            if not said:
                found.places.append(None)
                continue
            if before != (asked, str(reference or "")):
                before = (asked, str(reference or ""))
                group = ScoreGroup(asked, [], lane="trainer", model=model, reference=before[1])
                found.groups.append(group)
            responses = found.groups[-1].responses
            assert isinstance(responses, list)
            responses.append(said)
            found.places.append((len(found.groups) - 1, len(responses) - 1))
        return found

    def rewards(
        self, outcomes: Sequence[ScoreResult | RewardloopError], pessimism: float, empty_reward: float | None
    ) -> list[float]:
        """Return the reward of each row: score - pessimism * uncertainty.

        Raises:
            RewardloopError: A group was not scored.
            ValueError: A completion is empty, and ``empty_reward`` does not say what it is worth.
        """
        for outcome in outcomes:
            if isinstance(outcome, RewardloopError):
                raise outcome
        rewards = []
        for place in self.places:
            if place is None:
                if empty_reward is None:
                    raise ValueError("a completion is empty, which no reward model scores: set empty_reward")
                rewards.append(empty_reward)
                continue
            outcome = outcomes[place[0]]
            assert isinstance(outcome, ScoreResult)
            score = outcome.scores[place[1]]
            rewards.append(score.score - pessimism * score.uncertainty)
        return rewards


def _parted(prompt: Text, completion: Text) -> tuple[Text, str]:
    """Return what the last turn of a completion answers, and its text."""
    if isinstance(completion, str):
        return prompt, completion
    if not completion or not isinstance(completion[-1].get("content"), str):
        raise ValueError("a completion is neither a text nor messages that end with one")
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*before, *completion[:-1]], completion[-1]["content"]
