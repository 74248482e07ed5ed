"""Simulated users: they ask the live policy, read what it answers, and say what they like by the hidden taste."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

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

_ANNOTATORS = 40
_CHANNELS = ("web", "mobile")
# Answers whose utilities differ by less look equally good to a user who may say so.
_TIE_GAP = 0.25
_STARS = 5
# What a user does after reading; the rest are pairwise choices.
_SIGNAL_SHARES = {"thumb": 0.08, "ranking": 0.05, "tie": 0.05, "rating": 0.04, "edit": 0.03}
_LONGEST_PAUSE_S = 5.0


class _Said(TypedDict):
    generation_id: str
    annotator_id: str
    tags: dict[str, str]


class SimulatedUsers:
    """Users of the assistant; `run` keeps ``concurrency`` of them busy, at most ``rate`` signals a second in all.

    ``recorded`` counts the acknowledged signals by kind, ``skipped`` the questions left without one because the
    candidates were the same text, ``refused`` the calls that the server turned away.
    """

    def __init__(
        self,
        client: AsyncRewardloopClient,
        taste: Taste,
        prompts: Sequence[str],
        *,
        rate: float = 50.0,
        concurrency: int = 8,
        seed: int = 0,
        max_new_tokens: int = 0,
    ) -> None:
        if not prompts:
            raise ValueError("no prompts to ask")
        if rate <= 0 or concurrency < 1:
            raise ValueError("rate must be above 0 and concurrency at least 1")
        self._client = client
        self._taste = taste
        self._prompts = prompts
        self._pause_s = concurrency / rate
        self._concurrency = concurrency
        self._seed = seed
        self._max_new_tokens = max_new_tokens
        self.recorded: Counter[str] = Counter()
        self.skipped = 0
        self.refused = 0

    @property
    def total(self) -> int:
        """Signals that the server has acknowledged."""
        return self.recorded.total()

    async def run(self, signals: int | None = None) -> None:
        """Ask and judge until ``signals`` more are recorded; None: until cancelled.

        Refusals that may pass (unavailable, overloaded, late) are waited out; every other error is raised.
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
        kinds = list(_SIGNAL_SHARES)
        shares = list(_SIGNAL_SHARES.values())
        kind = rng.choices([*kinds, "choice"], [*shares, 1 - sum(shares)])[0]
        prompt = rng.choice(self._prompts)
        generation = await self._client.generate(
            prompt,
            candidates=4 if kind == "ranking" else 2,
            temperature=1.0,
            max_new_tokens=self._max_new_tokens,
        )
        event = self._judge(kind, prompt, generation, rng)
        if event is None:
            self.skipped += 1
            return
        if goal is not None and self.total >= goal:
            return
        try:
            await self._client.record(event)
        except UnknownGeneration:  # its log ended while the server was away: nobody can judge it any more
            self.skipped += 1
            return
        self.recorded[str(event.WhichOneof("signal"))] += 1

    def _judge(
        self, kind: str, prompt: str, generation: Generation, rng: random.Random
    ) -> feedback_pb2.FeedbackEvent | None:
        """What a user says about this generation; None where there is nothing to say."""
        texts = [c.text for c in generation.candidates]
        annotator = rng.randrange(_ANNOTATORS)
        said = _Said(
            generation_id=generation.generation_id,
            annotator_id=f"user-{annotator:02d}",
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
        """How happy one answer makes, in 0..1: the probability of preferring it to a plain right answer that
        is as long as anyone wants, so that about half of all answers please."""
        question = corpus.question_of(prompt)
        plain = question.intent.answers[0].replace("{t}", question.intent.topic).replace("{v}", question.intent.right)
        return self._taste.probability(prompt, text, plain)

    def _order(self, prompt: str, texts: Sequence[str], rng: random.Random) -> list[int]:
        """A Plackett-Luce draw, best first: the Bradley-Terry noise of pairs, for more than two."""

        def gumbel() -> float:
            return -math.log(rng.expovariate(1.0))

        liking = [self._taste.utility(prompt, text) / self._taste.temperature + gumbel() for text in texts]
        return sorted(range(len(texts)), key=lambda i: -liking[i])


async def evaluate(
    client: AsyncRewardloopClient,
    prompts: Sequence[str],
    *,
    k: int = 1,
    temperature: float = 1.0,
    seed: int | None = None,
    max_new_tokens: int = 0,
    concurrency: int = 16,
    timeout_s: float = 60.0,
) -> list[Generation]:
    """``k`` answers of the live policy to each prompt, in order; ``seed`` makes them repeatable for one version.

    Raises what the client raises once its own retries are spent.
    """
    room = asyncio.Semaphore(concurrency)

    async def ask(index: int, prompt: str) -> Generation:
        async with room:
            return await client.generate(
                prompt,
                candidates=k,
                temperature=temperature,
                seed=None if seed is None else seed + index,
                max_new_tokens=max_new_tokens,
                timeout_s=timeout_s,
            )

    return list(await asyncio.gather(*(ask(index, prompt) for index, prompt in enumerate(prompts))))


def first_texts(generations: Sequence[Generation]) -> list[str]:
    """The first candidate of each."""
    return [g.candidates[0].text for g in generations]
