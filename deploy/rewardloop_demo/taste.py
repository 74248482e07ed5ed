"""The taste of the simulated users: a hidden rule over correctness, tone and length, with Bradley-Terry noise.

Only the users' choices may reveal the rule to training, because the rule also judges the demo's win rate. Therefore
this module cannot be imported in a process that has loaded torch, as every process that trains has.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from rewardloop_local import corpus

if "torch" in sys.modules:
    raise ImportError("the hidden taste must not be readable where training runs")

# Up to this many words, users do not mind the length of an answer.
_FREE_WORDS = 24
_TOO_FEW_WORDS = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """What the rule reads in an answer.

    Attributes:
        is_correct: Whether it names the topic and the right value.
        is_wrong: Whether it gives a value of another topic.
        is_on_topic: Whether it names the topic.
        greetings: Number of kinds of polite sentences in it: an opening, a closing (0..2).
        is_curt: Whether it has a rude sentence.
        words: Number of its words.
        garbled: Share of its words that are in no text of the corpus (0..1).
        repeated: Number of sentences that repeat an earlier one.
    """

    is_correct: bool
    is_wrong: bool
    is_on_topic: bool
    greetings: int
    is_curt: bool
    words: int
    garbled: float
    repeated: int

    @property
    def is_right(self) -> bool:
        """Whether it gives the right fact and no wrong one."""
        return self.is_correct and not self.is_wrong

    @property
    def is_polite(self) -> bool:
        """Whether it has a polite sentence and no rude one."""
        return self.greetings > 0 and not self.is_curt


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


class Taste:
    """The taste of one population of users."""

    def __init__(self, seed: int = 0, *, temperature: float = 0.5) -> None:
        """Draw a taste.

        Args:
            seed: Decides how correctness, tone and length weigh against each other.
            temperature: Scale of the Bradley-Terry noise:
                P(a over b) = sigmoid((utility(a) - utility(b)) / temperature).

        Raises:
            ValueError: The temperature is not above 0.
        """
        if temperature <= 0:
            raise ValueError("temperature must be above 0")
        rng = random.Random(seed)
        self.temperature = temperature
        self._right = rng.uniform(0.9, 1.2)
        self._greeting = rng.uniform(0.6, 0.8)
        self._curt = rng.uniform(0.8, 1.1)
        self._extra_word = rng.uniform(0.05, 0.07)

    def utility(self, prompt: str, response: str) -> float:
        """How much people like an answer. Only differences between utilities mean something.

        Raises KeyError if the corpus has no such question.
        """
        seen = read(prompt, response)
        if seen.words == 0:
            return -4.0
        value = -self._curt if seen.is_curt else 0.0
        value += self._greeting * min(seen.greetings, 2)
        if seen.is_right:
            value += self._right
        elif seen.is_wrong:
            value -= 0.3 * self._right
        if not seen.is_on_topic:
            value -= 0.8
        if seen.words < _TOO_FEW_WORDS:
            value -= 1.0
        value -= min(self._extra_word * max(0, seen.words - _FREE_WORDS), 1.6)
        value -= 0.4 * min(seen.repeated, 3)
        return value - (2.0 * seen.garbled if seen.garbled > 0.1 else 0.0)

    def probability(self, prompt: str, a: str, b: str) -> float:
        """The probability that a user prefers ``a`` to ``b``."""
        gap = (self.utility(prompt, a) - self.utility(prompt, b)) / self.temperature
        return 1 / (1 + math.exp(-gap)) if gap > -50 else 0.0

    def prefers(self, prompt: str, a: str, b: str, rng: random.Random) -> int:
        """Draw one user's choice: 0 for ``a``, 1 for ``b``."""
        return int(rng.random() >= self.probability(prompt, a, b))

    def agreement_ceiling(self, pairs: Iterable[tuple[str, str, str]]) -> float:
        """The expected accuracy of the rule without noise on noisy choices between (prompt, a, b).

        A model exceeds it only by luck. It is NaN without pairs.
        """
        agreement = [max(p, 1 - p) for p in (self.probability(*pair) for pair in pairs)]
        return sum(agreement) / len(agreement) if agreement else math.nan

    def wins(self, prompts: Sequence[str], answers: Sequence[str], rivals: Sequence[str]) -> list[float]:
        """For each prompt, 1 if its answer is liked better than its rival, 0 if the rival is, and 0.5 for a tie."""
        gaps = (
            self.utility(prompt, a) - self.utility(prompt, b)
            for prompt, a, b in zip(prompts, answers, rivals, strict=True)
        )
        return [0.5 if abs(gap) < 1e-9 else float(gap > 0) for gap in gaps]

    def win_rate(self, prompts: Sequence[str], answers: Sequence[str], rivals: Sequence[str]) -> Interval:
        """The share of prompts whose answer is liked better than its rival. A tie counts as half."""
        return interval(self.wins(prompts, answers, rivals))


def interval(wins: Sequence[float], *, resamples: int = 2_000, seed: int = 0) -> Interval:
    """The mean with its 95% bootstrap interval over prompts. Raises ValueError without wins."""
    if not wins:
        raise ValueError("no wins to average")
    values = np.asarray(wins, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def read(prompt: str, response: str) -> Reading:
    """Read an answer without regard to case and punctuation. Raises KeyError if the corpus has no such question."""
    intent = corpus.question_of(prompt).intent
    text = corpus.normalise(response)
    words = text.split()
    is_on_topic = _has(text, intent.topic)
    marks = _marks()
    sentences = Counter(s for part in response.replace("!", ".").replace("?", ".").split(".") if (s := part.strip()))
    return Reading(
        is_correct=is_on_topic and _has(text, intent.right),
        is_wrong=any(_has(text, value) for value in intent.values if value != intent.right),
        is_on_topic=is_on_topic,
        greetings=any(p in text for p in marks.polite_openings) + any(p in text for p in marks.polite_closings),
        is_curt=any(text.startswith(p) for p in marks.curt_openings) or any(p in text for p in marks.curt_closings),
        words=len(words),
        garbled=sum(word not in _known_words() for word in words) / max(len(words), 1),
        repeated=sum(count - 1 for count in sentences.values()),
    )


def _has(text: str, phrase: str) -> bool:
    return corpus.normalise(phrase) in text


@cache
def _marks() -> corpus.Phrases:
    """The phrases of the corpus, normalised."""
    said = corpus.phrases()
    return corpus.Phrases(*(tuple(map(corpus.normalise, getattr(said, name))) for name in corpus.Phrases.__slots__))


@cache
def _known_words() -> frozenset[str]:
    said = corpus.phrases()
    texts = [phrase for name in corpus.Phrases.__slots__ for phrase in getattr(said, name)]
    for intent in corpus.intents():
        texts += (*intent.paraphrases, *intent.answers, *intent.values, intent.topic)
    return frozenset(word for text in texts for word in corpus.normalise(text.replace("{", "")).split())
