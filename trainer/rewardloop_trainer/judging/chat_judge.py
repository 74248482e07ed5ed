"""A judge that asks a chat model: in both orders, several times each, by a rubric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias, TypeVar

from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.chat import Chat, Chooser, Request
from rewardloop_trainer.judging.judge import NEITHER, Answer, Duel, JudgeRefused, Opinion, choice_of
from rewardloop_trainer.judging.prompts import (
    RATINGS,
    VERDICTS,
    again,
    comparison,
    rating,
    read_rating,
    read_verdict,
    speaks_to_judge,
)
from rewardloop_trainer.judging.rubric import Rubric

Asked = TypeVar("Asked")
Said = TypeVar("Said")
# Why a duel has no opinion.
Unjudged: TypeAlias = Literal["speaks_to_judge", "refused", "unreadable"]

_MOST_NAME = 128
_REPEATED = 2_000  # characters of a reply that has no verdict, which the model is shown again


@dataclass(frozen=True, slots=True)
class Voting:
    """How often a model is asked, and how it answers.

    Attributes:
        votes: Votes in each of the two orders.
        temperature: Of the replies. Several votes at temperature 0 are one vote, on most endpoints.
        max_tokens: Most tokens of a reply.
        seed: Of the first vote.
    """

    votes: int = 1
    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0


class ChatJudge:
    """A `Judge` by a chat model, or by a model that says how likely each verdict is."""

    def __init__(
        self,
        chat: Chat | Chooser,
        rubric: Rubric,
        voting: Voting,
        concurrency: int = 1,
        on_unjudged: Callable[[Unjudged], None] = lambda reason: None,
    ) -> None:
        """Take the model.

        Args:
            chat: The model. One that can choose is not made to write, and votes once in each order.
            rubric: What it judges by.
            voting: How often it is asked.
            concurrency: Questions that are asked at once.
            on_unjudged: Called with the reason for each question without an answer, from any thread.
        """
        self._chat, self._rubric, self._voting = chat, rubric, voting
        self._concurrency, self._on_unjudged = concurrency, on_unjudged

    @property
    def name(self) -> str:
        """The model, the rubric with its version, the votes and the temperature."""
        votes = "" if isinstance(self._chat, Chooser) else f"/{self._voting.votes}x{self._voting.temperature:g}"
        tail = f"/{self._rubric.label}{votes}"
        return self._chat.name[-(_MOST_NAME - len(tail)) :] + tail

    def compare(self, duels: Sequence[Duel]) -> list[Opinion | None]:
        """Ask in both orders; see `Judge.compare`. A response that speaks to the judge is not judged."""
        return self._each(self._opinion, duels)

    def rate(self, answers: Sequence[Answer]) -> list[float | None]:
        """Ask for ratings; see `Judge.rate`. That of a model that chooses is the mean over its probabilities."""
        return self._each(self._rating, answers)

    def _each(self, ask: Callable[[Asked], Said], asked: Sequence[Asked]) -> list[Said]:
        if self._concurrency == 1 or len(asked) < 2:
            return [ask(each) for each in asked]
        pool = ThreadPoolExecutor(min(self._concurrency, len(asked)), thread_name_prefix="judge")
        try:
            return list(pool.map(ask, asked))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _opinion(self, duel: Duel) -> Opinion | None:
        if speaks_to_judge(duel.first) or speaks_to_judge(duel.second):
            self._on_unjudged("speaks_to_judge")
            return None
        criteria = self._rubric.criteria
        models: set[str] = set()
        try:
            straight = self._votes(comparison(duel.prompt, duel.first, duel.second, criteria), models)
            swapped = self._votes(comparison(duel.prompt, duel.second, duel.first, criteria), models)
        except JudgeRefused:
            self._on_unjudged("refused")
            return None
        if not straight or not swapped:
            self._on_unjudged("unreadable")
            return None
        return opinion_of(fmean(straight), fmean(swapped), "+".join(sorted(models)))

    def _rating(self, answer: Answer) -> float | None:
        if speaks_to_judge(answer.response):
            self._on_unjudged("speaks_to_judge")
            return None
        asked = rating(answer.prompt, answer.response, self._rubric.criteria)
        try:
            said = self._ratings(asked)
        except JudgeRefused:
            self._on_unjudged("refused")
            return None
        found = [each for each in said if each is not None]
        if not found:
            self._on_unjudged("unreadable")
            return None
        return fmean(found)

    def _ratings(self, asked: Prompt) -> list[float | None]:
        if isinstance(self._chat, Chooser):
            chances = self._chat.choose(asked, list(RATINGS))
            return [sum(chance * value for chance, value in zip(chances, RATINGS.values(), strict=True))]
        return [self._read(asked, vote, read_rating, set()) for vote in range(self._voting.votes)]

    def _votes(self, asked: Prompt, models: set[str]) -> list[float]:
        """Return how far each readable vote is for the response that was shown first.

        The versions of the model that answered are added to ``models``.
        """
        if isinstance(self._chat, Chooser):
            words = list(VERDICTS)
            models.add(self._chat.name)
            chances = self._chat.choose(asked, [f"VERDICT: {word}" for word in words])
            return [sum(chance * VERDICTS[word] for word, chance in zip(words, chances, strict=True))]
        said = [self._read(asked, vote, read_verdict, models) for vote in range(self._voting.votes)]
        return [each for each in said if each is not None]

    def _read(self, asked: Prompt, vote: int, read: Callable[[str], float | None], models: set[str]) -> float | None:
        """Ask for one vote, and once more if the reply has not the form that was asked for."""
        assert not isinstance(self._chat, Chooser)
        voting = self._voting
        request = Request(asked, voting.max_tokens, voting.temperature, voting.seed + vote)
        reply = self._chat.complete(request)
        said = read(reply.text)
        if said is None:
            shorter = again(asked, reply.text[-_REPEATED:], rates=read is read_rating)
            reply = self._chat.complete(Request(shorter, voting.max_tokens, 0.0, voting.seed + vote))
            said = read(reply.text)
        if said is not None and reply.model:
            models.add(reply.model)
        return said


def opinion_of(straight: float, swapped: float, model: str = "") -> Opinion:
    """Return the opinion of the votes in both orders.

    Args:
        straight: Mean vote for the response shown first, with the duel's first response there.
        swapped: The same with the duel's second response shown first.
        model: The versions of the model that voted.
    """
    choices = choice_of(straight), choice_of(1 - swapped)
    agrees = choices[0] == choices[1]
    return Opinion(
        choices[0] if agrees else NEITHER,
        (straight + 1 - swapped) / 2,
        first_shown=(straight + swapped) / 2,
        agrees=agrees,
        model=model,
    )
