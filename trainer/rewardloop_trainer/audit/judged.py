"""The signals of an audit: what each one compares, and the slices that it belongs to."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewardloop.formats.signals import person_of
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.annotators.gestures import Gesture, gesture_of
from rewardloop_trainer.data.preferences import Pair, Prompt, Record, from_event, pairs_of
from rewardloop_trainer.data.split import keys_of, side_of

EVERYTHING = "all"
# Tags that may say the language of a signal.
_LANGUAGE_TAGS = ("language", "lang", "locale")
_MOST_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Judged:
    """One signal.

    Attributes:
        records: Its training records: one, or none if it compares equal texts.
        pairs: The comparisons in it.
        gesture: How it was given.
        kind: Its kind, such as choice.
        slices: Names of the slices that it belongs to, `EVERYTHING` first.
        is_unseen: Whether the audited model has not learned from it or its question.
    """

    records: tuple[Record, ...]
    pairs: tuple[Pair, ...]
    gesture: Gesture
    kind: str
    slices: tuple[str, ...]
    is_unseen: bool


@dataclass(frozen=True, slots=True)
class Unseen:
    """How to tell which signals a model has not learned from.

    Attributes:
        until_ms: It has learned from nothing that arrived later than this; None: from nothing at all.
        heldout_share: Share of questions that training holds out, as the trainer's setting says.
    """

    until_ms: int | None
    heldout_share: float

    def holds(self, prompt: Prompt, arrived_ms: int) -> bool:
        if self.until_ms is None or arrived_ms > self.until_ms:
            return True
        return side_of(keys_of(prompt).root, heldout_share=self.heldout_share) == "heldout"


def judged_of(
    events: Iterable[feedback_pb2.FeedbackEvent], unseen: Unseen, group_tag: str, most_slices: int = 60
) -> list[Judged]:
    """Return the signals of an audit.

    Args:
        events: Valid events.
        unseen: Which of them the model has not learned from.
        group_tag: The tag that names the group of an annotator.
        most_slices: Slices that are kept: those with the most signals.
    """
    found = []
    for event in events:
        records = tuple(from_event(event))
        if records:
            gesture = gesture_of(event)
            prompt = records[0].prompt
            found.append(
                Judged(
                    records,
                    tuple(pairs_of(records)),
                    gesture,
                    str(event.WhichOneof("signal")),
                    (EVERYTHING, *_slices(event, gesture, prompt, group_tag)),
                    unseen.holds(prompt, gesture.arrived_ms),
                )
            )
    counts = Counter(name for each in found for name in each.slices)
    kept = {name for name, _ in counts.most_common(most_slices)}
    return [
        Judged(j.records, j.pairs, j.gesture, j.kind, tuple(s for s in j.slices if s in kept), j.is_unseen)
        for j in found
    ]


def slices_in(judged: Sequence[Judged]) -> list[str]:
    """Return the slices that any signal is in: everything first, then by name."""
    names = {name for each in judged for name in each.slices} - {EVERYTHING}
    return [EVERYTHING, *sorted(names)]


def language_of(prompt: Prompt, tags: Iterable[tuple[str, str]]) -> str:
    """Return the language that a tag names, or else the script that most of the user's letters are of.

    A script is no language: Latin stands for many. Tag signals with their language where it matters.
    """
    named = dict(tags)
    for tag in _LANGUAGE_TAGS:
        if tag in named:
            return named[tag]
    said = "".join(turn.content for turn in prompt if turn.role == "user")[:_MOST_CHARACTERS]
    scripts = Counter(unicodedata.name(letter, "UNKNOWN").split()[0].lower() for letter in said if letter.isalpha())
    return f"{scripts.most_common(1)[0][0]} script" if scripts else "unknown"


def _slices(event: feedback_pb2.FeedbackEvent, gesture: Gesture, prompt: Prompt, group_tag: str) -> Iterable[str]:
    yield f"source {gesture.source}"
    yield f"kind {event.WhichOneof('signal')}"
    yield f"language {language_of(prompt, event.tags.items())}"
    if event.caller:
        yield f"caller {event.caller}"
    if event.guideline_version:
        yield f"guidelines {event.guideline_version}"
    if not person_of(event):
        yield "people unnamed"
    for key, value in sorted(event.tags.items()):
        if key == group_tag:
            yield f"group {value}"
        elif key not in _LANGUAGE_TAGS:
            yield f"tag {key}={value}"
