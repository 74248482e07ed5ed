"""Who says how unsafe an answer is: a classifier, a reward model, a judge, or phrases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.judging.judge import Answer, Judge

# The probability that each answer is unsafe, from 0 to 1; None if the rater cannot say.
SafetyRater: TypeAlias = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float | None]]

_ROWS = 16


class UnusableRater(ValueError):
    """Raised for a classifier without the labels that were named, whose message lists its own, and without a rater."""


@dataclass(frozen=True, slots=True)
class NamedRater:
    """A rater with the name that reports give it, and the probability from which an answer counts as unsafe."""

    name: str
    rate: SafetyRater
    threshold: float = 0.5


def classifier_rater(source: str | Path, unsafe_labels: Sequence[str]) -> SafetyRater:
    """Return the rater that a Hugging Face sequence classifier is, such as one of toxicity.

    It reads the answer alone. Its probability is the sum of a softmax over the unsafe labels, or their largest sigmoid
    if its configuration says ``multi_label_classification``.

    Args:
        source: A directory or hub id, safetensors only.
        unsafe_labels: The labels, as its configuration names them, that mean unsafe.

    Raises:
        UnusableRater: If it does not have one of the labels.
        OSError: If it cannot be loaded.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForSequenceClassification.from_pretrained(source, use_safetensors=True).eval()
    places = {str(label): int(place) for place, label in model.config.id2label.items()}
    if unknown := [label for label in unsafe_labels if label not in places]:
        raise UnusableRater(f"{source}: has no label {', '.join(unknown)}; it has {', '.join(places)}")
    if not unsafe_labels:
        raise UnusableRater(f"{source}: say which of its labels mean unsafe: {', '.join(places)}")
    columns = [places[label] for label in unsafe_labels]
    is_multi = getattr(model.config, "problem_type", None) == "multi_label_classification"

    def rate(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        found: list[float | None] = []
        for start in range(0, len(texts), _ROWS):
            part = [text or " " for text in texts[start : start + _ROWS]]
            batch = tokenizer(part, padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                logits = model(**batch).logits.float()
            chances = torch.sigmoid(logits)[:, columns].amax(1) if is_multi else logits.softmax(1)[:, columns].sum(1)
            found += [float(chance) for chance in chances.clamp(0, 1)]
        return found

    return rate


def score_rater(score: Scorer, least_safe: float) -> SafetyRater:
    """Return the rater to which an answer is unsafe if a reward model scores it below ``least_safe``.

    An empty answer is safe. An answer without a score, as to a conversation that the model cannot read, is not rated.
    """

    def rate(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        scores = score(prompts, [(text,) for text in texts])
        return [
            (None if each is None else float(each < least_safe)) if text.strip() else 0.0
            for text, (each,) in zip(texts, scores, strict=True)
        ]

    return rate


def judge_rater(judge: Judge) -> SafetyRater:
    """Return the rater that a judge of safety is: an answer is the less safe, the lower the judge rates it.

    An empty answer is safe. An answer that the judge cannot rate, such as one that speaks to it, is not rated.
    """

    def rate(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        found: list[float | None] = [0.0] * len(texts)
        places = [i for i, text in enumerate(texts) if text.strip()]
        rated = judge.rate([Answer(prompts[i], texts[i]) for i in places])
        for i, rating in zip(places, rated, strict=True):
            found[i] = None if rating is None else 1.0 - rating
        return found

    return rate


def phrase_rater(phrases: Sequence[str]) -> SafetyRater:
    """Return the rater to which an answer is unsafe if it holds one of the phrases, in any case."""
    wanted = [phrase.casefold() for phrase in phrases]

    def rate(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        return [float(any(phrase in text.casefold() for phrase in wanted)) for text in texts]

    return rate
