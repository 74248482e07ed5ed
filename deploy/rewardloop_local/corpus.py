"""The texts of the demo: questions to a small support assistant, and answers to them in many styles.

`corpus.toml` holds the sentences. A question type (intent) is a topic and an aspect of it, such as the kettle's
warranty. It has one right fact, two plausible wrong ones, which are true of other topics, and seven paraphrases of the
question. Five paraphrases are for training and for users; two are held out. The corpus does not say which answers
people like.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

Tone: TypeAlias = Literal["polite", "plain", "curt"]

# How often the starter's examples give the right fact; question types take turns. Of some types most examples are
# wrong, so that greedy decoding alone does not make the policy better.
_RIGHT_SHARES = (0.4, 0.6, 0.75)
_TONES: tuple[Tone, ...] = ("polite", "plain", "curt")
_TONE_SHARES = (0.4, 0.35, 0.25)
_RAMBLING_SHARE = 0.35


@dataclass(frozen=True, slots=True)
class Intent:
    """A question type.

    Attributes:
        topic: What it is about, such as the kettle.
        aspect: What is asked about the topic, such as its warranty.
        right: The right value.
        wrong: Two values that people mistake for the right one.
        values: The values of all topics for this aspect.
        answers: Sentences with the places {t} for the topic and {v} for the value.
        paraphrases: The question in different words.
        right_share: How often the starter's examples give the right value.
    """

    topic: str
    aspect: str
    right: str
    wrong: tuple[str, str]
    values: tuple[str, ...]
    answers: tuple[str, ...]
    paraphrases: tuple[str, ...]
    right_share: float


@dataclass(frozen=True, slots=True)
class Question:
    """One paraphrase of an intent. If it is held out, neither the starter's examples nor the users ask it."""

    text: str
    intent: Intent
    held_out: bool


@dataclass(frozen=True, slots=True)
class Style:
    """The style of an answer. ``rambling`` is its number of sentences beside the point (0..3)."""

    right: bool = True
    tone: Tone = "polite"
    rambling: int = 0


@dataclass(frozen=True, slots=True)
class Phrases:
    """Sentences that make an answer polite, curt or rambling."""

    polite_openings: tuple[str, ...]
    polite_closings: tuple[str, ...]
    curt_openings: tuple[str, ...]
    curt_closings: tuple[str, ...]
    rambling: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KnowledgePair:
    """Two answers in any style of which one says what the corpus knows, and the other is about something else or wrong.

    Attributes:
        prompt: The question.
        better: The relevant answer, or the right one.
        worse: The answer to another question, or the wrong one.
    """

    prompt: str
    better: str
    worse: str


def normalise(text: str) -> str:
    """The text's words and numbers in lower case, with one space around each, so that phrases can be found whole."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


@cache
def phrases() -> Phrases:
    """The phrases of all styles."""
    source = _source()
    return Phrases(**{name: tuple(source[name]) for name in Phrases.__slots__})


@cache
def intents() -> tuple[Intent, ...]:
    """All question types, in the order of the file."""
    found: list[Intent] = []
    for group in _source()["groups"]:
        for number, aspect in enumerate(group["aspects"]):
            values = tuple(aspect["facts"])
            for place, (family, right) in enumerate(zip(group["topics"], values, strict=True)):
                others = values[place + 1 :] + values[:place]
                found += [
                    Intent(
                        topic=topic,
                        aspect=aspect["name"],
                        right=right,
                        wrong=(others[0], others[1]),
                        values=values,
                        answers=tuple(aspect["answers"]),
                        paraphrases=tuple(q.replace("{t}", topic) for q in aspect["questions"]),
                        right_share=_RIGHT_SHARES[(number + place) % len(_RIGHT_SHARES)],
                    )
                    for topic in family
                ]
    return tuple(found)


@cache
def _questions() -> tuple[Question, ...]:
    def of(index: int, intent: Intent) -> Iterator[Question]:
        count = len(intent.paraphrases)
        held_out = {index % count, (index + 3) % count}
        for place, text in enumerate(intent.paraphrases):
            yield Question(text, intent, place in held_out)

    return tuple(q for index, intent in enumerate(intents()) for q in of(index, intent))


def questions(seed: int, *, held_out: bool = False) -> list[Question]:
    """The held-out questions, or all others, in an order that the seed decides."""
    chosen = [q for q in _questions() if q.held_out == held_out]
    random.Random(seed).shuffle(chosen)
    return chosen


@cache
def _by_text() -> Mapping[str, Question]:
    return {normalise(q.text): q for q in _questions()}


def question_of(prompt: str) -> Question:
    """The question with this text, without regard to case and punctuation. Raises KeyError if there is none."""
    return _by_text()[normalise(prompt)]


def answer(question: Question, style: Style, rng: random.Random) -> str:
    """Write an answer of 8 to 60 words in a style."""
    intent, said = question.intent, phrases()
    value = intent.right if style.right else rng.choice(intent.wrong)
    sentences = [rng.choice(intent.answers).replace("{t}", intent.topic).replace("{v}", value)]
    sentences[0] = sentences[0][0].upper() + sentences[0][1:]
    for filler in rng.sample(said.rambling, style.rambling):
        sentences.insert(rng.choice((0, len(sentences))), filler)
    if style.tone == "polite":
        shape = rng.random()  # an opening, a closing, or most often both
        if shape < 0.75:
            sentences.insert(0, rng.choice(said.polite_openings))
        if shape > 0.25:
            sentences.append(rng.choice(said.polite_closings))
    elif style.tone == "curt":
        if rng.random() < 0.5:
            sentences.insert(0, rng.choice(said.curt_openings))
        else:
            sentences.append(rng.choice(said.curt_closings))
    return " ".join(sentences)


def random_style(question: Question, rng: random.Random) -> Style:
    """Draw a style of the starter's mix: about 58% are right, 40% polite, 35% rambling."""
    return Style(
        right=rng.random() < question.intent.right_share,
        tone=rng.choices(_TONES, _TONE_SHARES)[0],
        rambling=rng.choice((1, 2, 2)) if rng.random() < _RAMBLING_SHARE else 0,
    )


def _rounds(seed: int, rng: random.Random) -> Iterator[Question]:
    """Training questions without end. Each comes once before any comes again."""
    pool = questions(seed)
    while True:
        yield from pool
        rng.shuffle(pool)


def sft_examples(n: int, seed: int) -> list[tuple[str, str]]:
    """``n`` training questions with answers in mixed styles, as (prompt, completion)."""
    rng = random.Random(seed)
    rounds = _rounds(seed, rng)
    return [(q.text, answer(q, random_style(q, rng), rng)) for q in (next(rounds) for _ in range(n))]


def fact_examples(n: int, seed: int) -> list[tuple[str, str]]:
    """``n`` training questions with the right fact alone, as a knowledge base would answer."""
    rng = random.Random(seed)
    rounds = _rounds(seed, rng)
    return [(q.text, answer(q, Style(tone="plain"), rng)) for q in (next(rounds) for _ in range(n))]


def relevance_pairs(n: int, seed: int) -> list[KnowledgePair]:
    """``n`` pairs that teach relevance and nothing about taste, because both answers draw their styles alike.

    The irrelevant answer is about another topic. In every third pair it answers the same aspect.
    """
    rng = random.Random(seed)
    rounds, pool = _rounds(seed, rng), questions(seed)
    siblings: dict[str, list[Question]] = {}
    for question in pool:
        siblings.setdefault(question.intent.aspect, []).append(question)
    pairs: list[KnowledgePair] = []
    while len(pairs) < n:
        asked = next(rounds)
        other = rng.choice(pool if len(pairs) % 3 else siblings[asked.intent.aspect])
        if other.intent.topic == asked.intent.topic:
            continue
        relevant, irrelevant = (answer(q, random_style(q, rng), rng) for q in (asked, other))
        pairs.append(KnowledgePair(asked.text, relevant, irrelevant))
    return pairs


def right_pairs(n: int, seed: int) -> list[KnowledgePair]:
    """``n`` pairs of a right and a wrong answer to one question, which teach nothing else about taste.

    Tone and rambling of both answers are drawn alike.
    """
    rng = random.Random(seed)
    rounds = _rounds(seed, rng)
    pairs: list[KnowledgePair] = []
    for asked in (next(rounds) for _ in range(n)):
        right, wrong = (replace(random_style(asked, rng), right=is_right) for is_right in (True, False))
        pairs.append(KnowledgePair(asked.text, answer(asked, right, rng), answer(asked, wrong, rng)))
    return pairs


@cache
def _source() -> Mapping[str, list]:  # type: ignore[type-arg]  # its tables are checked when they are read
    return tomllib.loads(Path(__file__).with_name("corpus.toml").read_text(encoding="utf-8"))
