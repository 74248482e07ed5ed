"""What is sampled from a causal language model, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor

Finish: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt and how to answer it.

    Attributes:
        prompt: Token ids, at least one.
        candidates: How many answers to sample.
        temperature: Divides the logits; 0 is greedy.
        top_p: Mass of the nucleus, in (0, 1].
        seed: Fixes the random numbers of each candidate, together with its index. So candidate 2 is the same whether 3
            or 5 candidates are asked for.
        max_new_tokens: Most tokens of a candidate.
    """

    prompt: Sequence[int]
    candidates: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Sampled:
    """One candidate.

    Attributes:
        ids: The sampled ids, with the end token if it came.
        logprobs: The log-probability of each id, in nats. They are of the distribution that was sampled from, after
            temperature, top_p and the generation rules, so they are all 0 if the sampling is greedy.
        finish: Whether it ended by an end token ("stop") or by its length.
    """

    ids: list[int]
    logprobs: list[float]
    finish: Finish

    @property
    def logprob(self) -> float:
        """The sum of the log-probabilities over the tokens."""
        return sum(self.logprobs)


@dataclass(slots=True, eq=False)
class Candidate:
    """A candidate while it is sampled.

    Attributes:
        task: The request that it answers.
        index: Its place among the request's candidates.
        draws: A random number for each of its tokens, and some more.
        ids: The ids so far.
        logprobs: Their log-probabilities.
        finish: How it ended, once it has.
        is_running: Whether it gets a further token.
    """

    task: Task
    index: int
    draws: Tensor
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"
    is_running: bool = True


@dataclass(slots=True, eq=False)
class Task:
    """A request while it is sampled.

    Attributes:
        request: What to sample. The prompt and its new tokens together must fit the model's positions.
        is_abandoned: Asked after each token. Once it returns True, the candidates end as they are.
        is_said: Told of each token that ends no candidate, with the candidate's index and its ids so far. If it returns
            True, the candidate ends there, with "length".
        candidates: The candidates, once the prompt was read.
        error: Why the request ended early, if the model gave it logits that are NaN.
    """

    request: SampleRequest
    is_abandoned: Callable[[], bool] = lambda: False
    is_said: Callable[[int, Sequence[int]], bool] | None = None
    candidates: list[Candidate] = field(default_factory=list, init=False)
    error: FloatingPointError | None = field(default=None, init=False)

    @property
    def is_done(self) -> bool:
        """Whether no candidate gets a further token."""
        return not any(candidate.is_running for candidate in self.candidates)

    @property
    def sampled(self) -> list[Sampled]:
        """The candidates as far as they are, in order."""
        return [Sampled(each.ids, each.logprobs, each.finish) for each in self.candidates]

    def end(self) -> None:
        """End all candidates as they are."""
        for candidate in self.candidates:
            candidate.is_running = False


def end_ids(model: Any, ends: Sequence[int]) -> frozenset[int]:
    """Return the ids that end an answer: those of the text format, and the model's own end tokens."""
    named = getattr(model.generation_config, "eos_token_id", None)
    others = [named] if isinstance(named, int) else list(named or ())
    return frozenset([*ends, *others])
