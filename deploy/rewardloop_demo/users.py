"""Simulated users: they ask the live policy, read its answers, and give signals by the hidden taste."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import structlog

from rewardloop.v1 import feedback_pb2
from rewardloop_client import (
    AsyncRewardloopClient,
    DeadlineExceeded,
    Feedback,
    Generation,
    Overloaded,
    Unavailable,
    UnknownGeneration,
)
from rewardloop_demo.taste import Taste
from rewardloop_local import corpus

log = structlog.get_logger()

_ANNOTATORS = 120
_CHANNELS = ("web", "mobile")
# A user who may call a tie does so if the answers' utilities differ by less than this.
_TIE_GAP = 0.25
_STARS = 5
# Shares of the signals beside thumbs; the rest are pairwise choices.
_SHARES = {"ranking": 0.05, "tie": 0.05, "rating": 0.04, "edit": 0.03}
_LONGEST_PAUSE_S = 5.0


class _Said(TypedDict):
    generation_id: str
    annotator_id: str
    tags: dict[str, str]


class Comparison(NamedTuple):
    """``chosen`` was preferred to ``rejected`` as the answer to ``prompt``."""

    prompt: str
    chosen: str
    rejected: str


class SimulatedUsers:
    """Users of the assistant.

    Attributes:
        recorded: Number of signals that the server has acknowledged, by kind.
        skipped: Number of questions without a signal, mostly because the candidates were the same text.
        refused: Number of calls that the server refused.
        comparisons: What the acknowledged choices and edits preferred, for the bag-of-words baseline.
    """

    def __init__(
        self,
        client: AsyncRewardloopClient,
        taste: Taste,
        prompts: Sequence[str],
        *,
        rate: float = 50.0,
        concurrency: int = 8,
        thumb_share: float = 0.08,
        seed: int = 0,
    ) -> None:
        """Describe the users; `run` lets them ask.

        Args:
            client: Connected to the server.
            taste: What the users like.
            prompts: The questions that they ask.
            rate: Most signals a second of all users together.
            concurrency: Number of users who ask at the same time.
            thumb_share: Share of the signals that are thumbs. Other signals keep their shares; choices are the rest.
            seed: Of the questions, of the kinds of signals, and of the noise.

        Raises:
            ValueError: There are no prompts, or a number is out of range.
        """
        if not prompts:
            raise ValueError("no prompts to ask")
        if rate <= 0 or concurrency < 1:
            raise ValueError("rate must be above 0 and concurrency at least 1")
        if not 0 <= thumb_share <= 1 - sum(_SHARES.values()):
            raise ValueError("thumb_share leaves no room for the other signals")
        self._client = client
        self._taste = taste
        self._prompts = prompts
        self._pause_s = concurrency / rate
        self._concurrency = concurrency
        self._shares = {**_SHARES, "thumb": thumb_share}
        self._seed = seed
        self.recorded: Counter[str] = Counter()
        self.skipped = 0
        self.refused = 0
        self.comparisons: list[Comparison] = []

    @property
    def total(self) -> int:
        """Signals that the server has acknowledged."""
        return self.recorded.total()

    async def run(self, signals: int | None = None) -> None:
        """Ask and judge until ``signals`` more signals are recorded, or until cancelled if it is None.

        After a refusal that may pass (unavailable, overloaded, deadline exceeded) a user waits and goes on. Every
        other error is raised.
        """
        goal = None if signals is None else self.total + signals
        async with asyncio.TaskGroup() as group:
            for user in range(self._concurrency):
                group.create_task(self._use(random.Random(f"{self._seed}/{user}/{self.total}"), goal))

    async def _use(self, rng: random.Random, goal: int | None) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while goal is None or self.total < goal:
            started = loop.time()
            try:
                await self._ask(rng, goal)
            except (Unavailable, Overloaded, DeadlineExceeded) as error:
                self.refused += 1
                log.info("refused", reason=error.reason, refused=self.refused)
                pause = error.retry_after_s or min(0.1 * 2**failures, _LONGEST_PAUSE_S)
                failures += 1
                await asyncio.sleep(pause * rng.uniform(0.8, 1.2))
                continue
            failures = 0
            await asyncio.sleep(max(0.0, started + self._pause_s - loop.time()))

    async def _ask(self, rng: random.Random, goal: int | None) -> None:
        shares = {**self._shares, "choice": 1 - sum(self._shares.values())}
        kind = rng.choices(list(shares), list(shares.values()))[0]
        prompt = rng.choice(self._prompts)
        candidates = 4 if kind == "ranking" else 2
        generation = await self._client.generate(prompt, candidates=candidates, temperature=1.0)
        event = self._judge(kind, prompt, generation, rng)
        if event is None:
            self.skipped += 1
            return
        if goal is not None and self.total >= goal:
            return
        try:
            await self._client.record(event)
        except UnknownGeneration:  # the generation expired while the server was away, so nobody can judge it
            self.skipped += 1
            return
        kind = str(event.WhichOneof("signal"))
        self.recorded[kind] += 1
        texts = [c.text for c in generation.candidates]
        if kind == "choice":
            self.comparisons.append(Comparison(prompt, texts[event.choice.chosen], texts[event.choice.rejected]))
        elif kind == "edit":
            self.comparisons.append(Comparison(prompt, event.edit.edited_text, texts[event.edit.response]))

    def _judge(
        self, kind: str, prompt: str, generation: Generation, rng: random.Random
    ) -> feedback_pb2.FeedbackEvent | None:
        """The signal that a user gives to a generation; None if the answers leave nothing to judge."""
        texts = [c.text for c in generation.candidates]
        annotator = rng.randrange(_ANNOTATORS)
        said = _Said(
            generation_id=generation.generation_id,
            annotator_id=f"user-{annotator:03d}",
            tags={"channel": _CHANNELS[annotator % 2]},
        )
        if not all(text.strip() for text in texts[:2]):
            return None
        if kind == "thumb":
            up = rng.random() < self._liking(prompt, texts[0])
            return Feedback.thumb(up=up, response=0, **said)
        if kind == "rating":
            value = round(1 + (_STARS - 1) * min(1.0, max(0.0, self._liking(prompt, texts[0]) + rng.gauss(0, 0.1))))
            return Feedback.rating(value=value, minimum=1, maximum=_STARS, response=0, **said)
        if kind == "edit":
            better = corpus.answer(corpus.question_of(prompt), corpus.Style(), rng)
            if better != texts[0]:
                return Feedback.edit(edited_text=better, response=0, **said)
        if len(set(texts)) < len(texts):
            return None
        if kind == "ranking":
            return Feedback.ranking(order=self._order(prompt, texts, rng), **said)
        gap = abs(self._taste.utility(prompt, texts[0]) - self._taste.utility(prompt, texts[1]))
        if kind == "tie" and gap < _TIE_GAP:
            return Feedback.tie(first=0, second=1, **said)
        chosen = self._taste.prefers(prompt, texts[0], texts[1], rng)
        return Feedback.choice(chosen=chosen, rejected=1 - chosen, **said)

    def _liking(self, prompt: str, text: str) -> float:
        """How much one answer pleases, in 0..1: the probability that a user prefers it to a plain right answer.

        About half of the starter's answers please by this measure.
        """
        question = corpus.question_of(prompt)
        plain = question.intent.answers[0].replace("{t}", question.intent.topic).replace("{v}", question.intent.right)
        return self._taste.probability(prompt, text, plain)

    def _order(self, prompt: str, texts: Sequence[str], rng: random.Random) -> list[int]:
        """Draw a ranking, best first, from the Plackett-Luce model, which is Bradley-Terry for more than two."""

        def gumbel() -> float:
            return -math.log(rng.expovariate(1.0))

        liking = [self._taste.utility(prompt, text) / self._taste.temperature + gumbel() for text in texts]
        return sorted(range(len(texts)), key=lambda i: -liking[i])


async def evaluate(
    client: AsyncRewardloopClient,
    prompts: Sequence[str],
    *,
    k: int = 1,
    version: str | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
    concurrency: int = 16,
    timeout_s: float = 60.0,
) -> list[Generation]:
    """Ask a version of the policy for ``k`` answers to each prompt; the generations are in the prompts' order.

    Without a ``version`` the live one answers, and the canary its share. With a ``seed``, a version gives the same
    answers each time. Raises what the client raises after its own retries.
    """
    room = asyncio.Semaphore(concurrency)

    async def ask(index: int, prompt: str) -> Generation:
        async with room:
            return await client.generate(
                prompt,
                candidates=k,
                temperature=temperature,
                pin_version=version,
                seed=None if seed is None else seed + index,
                timeout_s=timeout_s,
            )

    return list(await asyncio.gather(*(ask(index, prompt) for index, prompt in enumerate(prompts))))


def first_texts(generations: Sequence[Generation]) -> list[str]:
    """The first candidate of each generation."""
    return [g.candidates[0].text for g in generations]
