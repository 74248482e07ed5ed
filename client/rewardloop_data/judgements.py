"""Judgements that a row of a file holds, and the feedback event of each.

The id of an event is made of the judgement and of nothing else. So the same judgement has the same id, whatever else
its row holds, and in whichever file, format and order it stands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from rewardloop.formats.messages import message_of, prompt_of, tools_of, turns
from rewardloop.formats.mixing.names import is_name
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_client import Feedback, InvalidRequest
from rewardloop_client._feedback import Context
from rewardloop_client._types import SourceName
from rewardloop_data.rows import RowError, Turns, short


@dataclass(frozen=True, slots=True)
class Preferred:
    """Response ``chosen`` is better than response ``rejected``; ``strength`` is above 0 and at most 1."""

    chosen: int
    rejected: int
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class Equal:
    """Two responses are equally good."""

    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Ordered:
    """All responses, best first."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Approved:
    """A thumb up or down on the only response."""

    up: bool


@dataclass(frozen=True, slots=True)
class Graded:
    """A grade of the only response, within ``minimum`` and ``maximum``."""

    value: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Edited:
    """The only response, as somebody rewrote it."""

    text: str


Said: TypeAlias = Preferred | Equal | Ordered | Approved | Graded | Edited


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judgement of somebody about responses to a prompt.

    Attributes:
        prompt: The conversation before the responses, its tools included.
        responses: The responses.
        said: What was said about them.
        annotator: Who said it; "" if the row names nobody.
        aspect: The reward model that learns from it, if the row names one.
        key: The id that the row gives to the judgement; "" if it gives none.
        copy: How many equal judgements of the row, or of the file if each is counted, come before.
    """

    prompt: Turns
    responses: tuple[str, ...]
    said: Said
    annotator: str = ""
    aspect: str = ""
    key: str = ""
    copy: int = 0


@dataclass(frozen=True, slots=True)
class Labels:
    """The source and the tags that every event of an import gets, and the aspect of those whose row names none.

    ``import_id`` names the import, by which it can be taken back.
    """

    source: SourceName = "human"
    tags: Mapping[str, str] | None = None
    aspect: str = ""
    import_id: str = ""


def numbered(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Return the judgements of one row. Equal ones are those of different people, and are told apart by a number."""
    seen: dict[Judgement, int] = {}
    found = []
    for each in judgements:
        count = seen.get(each, 0)
        seen[each] = count + 1
        found.append(replace(each, copy=count) if count else each)
    return found


def digest_of(judgement: Judgement, aspect: str = "") -> str:
    """Return the sha256 of a judgement. Raises RowError for text that is not valid Unicode.

    A choice between two is the same whatever else was shown, and however the two are ordered. ``aspect`` counts if the
    judgement names none.
    """
    tools, said_before = tools_of(judgement.prompt)
    responses: Sequence[str] = judgement.responses
    said: list[Any] = [type(judgement.said).__name__, *_values(judgement.said)]
    if isinstance(judgement.said, Preferred):
        responses = [responses[judgement.said.chosen], responses[judgement.said.rejected]]
        said = ["Preferred", judgement.said.strength]
    elif isinstance(judgement.said, Equal):
        responses, said = sorted((responses[judgement.said.first], responses[judgement.said.second])), ["Equal"]
    content: list[Any] = [tools, [message_of(turn) for turn in said_before], list(responses), said]
    content += [judgement.annotator, judgement.aspect or aspect, judgement.key, judgement.copy]
    try:
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8")).hexdigest()
    except UnicodeEncodeError as error:
        raise RowError("holds text that is not valid Unicode (a lone surrogate)") from error


def event_of(judgement: Judgement, labels: Labels) -> feedback_pb2.FeedbackEvent:
    """Return the event of a judgement. Raises RowError if it breaks a rule of the client."""
    aspect = judgement.aspect or labels.aspect
    if aspect and not is_name(aspect):
        raise RowError(f"aspect: {short(aspect)} is no name of a reward model")
    context: Context = {
        "prompt": prompt_message(judgement.prompt),
        "responses": judgement.responses,
        "event_id": digest_of(judgement, labels.aspect),
        "annotator_id": judgement.annotator,
        "source": labels.source,
        "tags": labels.tags or {},
        "aspect": aspect,
    }
    try:
        event = _made(judgement.said, context)
    except InvalidRequest as error:
        raise RowError(str(error)) from error
    event.import_id = labels.import_id
    return event


def judgement_of(event: feedback_pb2.FeedbackEvent) -> Judgement:
    """Return the judgement of a valid event, whose `key` is the event's id: the reverse of `event_of`.

    What a caller of the service says beside the judgement, such as tags, is not part of it.
    """
    responses = tuple(event.responses)
    said: Said
    match event.WhichOneof("signal"):
        case "choice":
            strength = event.choice.strength if event.choice.HasField("strength") else None
            said = Preferred(event.choice.chosen, event.choice.rejected, strength)
        case "tie":
            said = Equal(event.tie.first, event.tie.second)
        case "ranking":
            said = Ordered(tuple(event.ranking.order))
        case "thumb":
            said, responses = Approved(event.thumb.up), (responses[event.thumb.response],)
        case "rating":
            rating = event.rating
            said, responses = Graded(rating.value, rating.minimum, rating.maximum), (responses[rating.response],)
        case "edit":
            said, responses = Edited(event.edit.edited_text), (responses[event.edit.response],)
        case other:
            raise ValueError(f"a signal of kind {other!r} is no judgement")
    return Judgement(turns(event.prompt), responses, said, event.annotator_id, event.aspect, event.event_id)


def _made(said: Said, context: Context) -> feedback_pb2.FeedbackEvent:
    match said:
        case Preferred():
            return Feedback.choice(chosen=said.chosen, rejected=said.rejected, strength=said.strength, **context)
        case Equal():
            return Feedback.tie(first=said.first, second=said.second, **context)
        case Ordered():
            return Feedback.ranking(order=said.order, **context)
        case Approved():
            return Feedback.thumb(up=said.up, response=0, **context)
        case Graded():
            return Feedback.rating(value=said.value, minimum=said.minimum, maximum=said.maximum, response=0, **context)
        case Edited():
            return Feedback.edit(edited_text=said.text, response=0, **context)


def _values(said: Said) -> list[Any]:
    return [getattr(said, name) for name in said.__slots__]


def prompt_message(prompt: Turns) -> common_pb2.Prompt:
    """Return the prompt as a message. Raises RowError for text that no message holds."""
    try:
        return prompt_of(prompt)
    except ValueError as error:  # text that is not valid Unicode
        raise RowError("prompt: holds text that is not valid Unicode (a lone surrogate)") from error
