"""The type of a judge: it compares two responses to a prompt, and rates one response.

A judge takes many questions in one call, so that an endpoint is asked concurrently and a reward model in batches. It
answers each of them or says that it has no answer; it never guesses one.

    def win_rate(judge: Judge, duels: Sequence[Duel]) -> float:
        opinions = [opinion for opinion in judge.compare(duels) if opinion is not None]
        return sum(opinion.wins for opinion in opinions) / len(opinions)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from rewardloop_trainer.data.preferences import Prompt

Choice: TypeAlias = Literal["first", "second", "tie"]
NEITHER: Choice = "tie"


@dataclass(frozen=True, slots=True)
class Duel:
    """Two responses to one prompt. A judge is asked in both orders, so that the order here means nothing to it."""

    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One response to a prompt."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge says of a duel.

    Attributes:
        choice: The better response. It is "tie" if the judge calls them equal, or if its choice depends on the order in
            which it reads them.
        probability: Probability that the first response is better, as the judge states it, from 0 to 1: the mean over
            its votes in both orders, with 1/2 for a tie.
        first_shown: Share of the votes for the response that was shown first, ties counted half: 1/2 for a judge
            without position bias.
        agrees: Whether the choices of the two orders are the same.
        model: The version of the model that answered, as it names itself; "" if it does not.
    """

    choice: Choice
    probability: float
    first_shown: float = 0.5
    agrees: bool = True
    model: str = ""

    @property
    def wins(self) -> float:
        """1 if the first response was chosen, 0 if the second was, and 1/2 for a tie."""
        return {"first": 1.0, "second": 0.0, "tie": 0.5}[self.choice]

    @property
    def annotation(self) -> int | str:
        """The choice as rows of preference files have it: 0, 1 or "tie"."""
        return {"first": 0, "second": 1}.get(self.choice, self.choice)


def choice_of(wins: float) -> Choice:
    """Return the first response above 1/2, the second one below, and neither at 1/2."""
    return "first" if wins > 0.5 else "second" if wins < 0.5 else NEITHER


class Judge(Protocol):
    """Compares and rates responses: a chat model with a rubric, or a reward model. Threads may share an instance."""

    @property
    def name(self) -> str:
        """Name the judge with the versions of its model and of its rubric, in at most 128 characters.

        Signals carry it as their annotator. Judges of the same name give opinions of one distribution.
        """

    def compare(self, duels: Sequence[Duel]) -> list[Opinion | None]:
        """Return an opinion of each duel, in their order; None stands for a duel that it cannot judge.

        Raises:
            JudgeAway, JudgeUnusable: If the judge cannot be asked.
            BudgetSpent: If the budget of the day does not suffice for all; what was answered is kept in its cache.
        """

    def rate(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return how good each response is, from 0 (worst) to 1, in their order; None for one that it cannot rate.

        Ratings of two judges are on different scales. Raises as `compare` does.
        """


class JudgeError(Exception):
    """Base of the errors of judging.

    JudgeError
    ├── JudgeAway       no usable reply in time; the same call may succeed later
    ├── JudgeRefused    the endpoint refuses this call, such as one that is too long
    ├── JudgeUnusable   the endpoint refuses every call, such as for a wrong key or an unknown model
    ├── BudgetSpent     the calls or tokens of the day are spent
    └── Stopped         the process is asked to end
    """


class JudgeAway(JudgeError):
    """Raised when there is no usable reply.

    Attributes:
        reason: One word for metrics: "timeout", "connection", "busy" (status 429), "server" (5xx), "garbage".
        retry_after_s: When the endpoint asks to be called again, in seconds; None if it does not say.
    """

    def __init__(self, reason: str, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.retry_after_s = retry_after_s


class JudgeRefused(JudgeError):
    """Raised when the endpoint refuses a call for what is in it."""


class JudgeUnusable(JudgeError):
    """Raised when the endpoint refuses every call."""


class BudgetSpent(JudgeError):
    """Raised when a call would exceed the budget of the day."""


class Stopped(JudgeError):
    """Raised in a pause between two attempts when the process is asked to end."""
