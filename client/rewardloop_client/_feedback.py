"""Makes feedback events, with one constructor for each kind of signal."""

from __future__ import annotations

import difflib
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypedDict, Unpack

from google.protobuf import timestamp_pb2

from rewardloop.formats.tokens import LONGEST_LIFE_S, make_publishable
from rewardloop.v1 import feedback_pb2
from rewardloop_client._convert import building, invalid, prompt_pb, responses_list, source_pb, text_field
from rewardloop_client._types import PromptLike, SourceName


class Context(TypedDict, total=False):
    """The fields that every signal may carry.

    A signal names either a ``generation_id``, by which the server knows prompt and responses, or its own ``prompt`` and
    ``responses``.

    Attributes:
        prompt: A text, a list of messages, ``{"messages", "tools"}``, or a ready message. A message is
            ``{"role", "content"}``, with ``tool_calls``, ``name`` and ``tool_call_id`` as Hugging Face writes them.
        responses: The responses that were judged.
        generation_id: The generation that showed them, from `Generation.generation_id`.
        event_id: Identifies the event, so that the server records it once. It is a random UUID if left out; keep the
            event to be able to send it again.
        annotator_id: Opaque id of the person or model that judged.
        source: "human", "llm_judge" or "implicit".
        tags: Free labels by which results can be sliced.
        event_time: When the judgement was made, by the caller's clock; it must have a time zone.
        display_order: Indices of the responses in the order in which the person saw them, first to last; left out if
            it is unknown. Position bias is estimated from it.
        aspect: What the signal judges: the name of the reward model that learns from it, such as "harmless"; "reward"
            if it is left out.
        guideline_version: Version of the guidelines that the person was given, at most 64 characters; left out if there
            were none.
    """

    prompt: PromptLike | None
    responses: Sequence[str]
    generation_id: str
    event_id: str
    annotator_id: str
    source: SourceName
    tags: Mapping[str, str]
    event_time: datetime | None
    display_order: Sequence[int]
    aspect: str
    guideline_version: str


class Feedback:
    """Constructors of feedback events. Indices count the responses from 0.

    Every constructor takes the fields of `Context` as keywords besides its own. The server checks the content; the
    constructors check only what a message cannot hold.

    Raises:
        InvalidRequest: A value has the wrong type, or a text is not valid Unicode.
        TypeError: A keyword is no field of a signal.
        ValueError: ``event_time`` has no time zone.
    """

    @staticmethod
    def choice(
        *, chosen: int, rejected: int, strength: float | None = None, **context: Unpack[Context]
    ) -> feedback_pb2.FeedbackEvent:
        """Say that response ``chosen`` was preferred to response ``rejected``.

        ``strength`` is above 0 (barely better) and at most 1 (far better); None says nothing about it.
        """
        event = _event(context)
        with building("choice"):
            event.choice.CopyFrom(feedback_pb2.Choice(chosen=chosen, rejected=rejected, strength=strength))
        return event

    @staticmethod
    def ranking(*, order: Sequence[int], **context: Unpack[Context]) -> feedback_pb2.FeedbackEvent:
        """Rank all responses. ``order`` lists every index once, best first."""
        event = _event(context)
        with building("ranking"):
            event.ranking.CopyFrom(feedback_pb2.Ranking(order=order))
        return event

    @staticmethod
    def thumb(*, up: bool, response: int = 0, **context: Unpack[Context]) -> feedback_pb2.FeedbackEvent:
        """Approve one response, or disapprove of it with ``up=False``."""
        event = _event(context)
        with building("thumb"):
            event.thumb.CopyFrom(feedback_pb2.Thumb(response=response, up=up))
        return event

    @staticmethod
    def rating(
        *, value: float, minimum: float, maximum: float, response: int = 0, **context: Unpack[Context]
    ) -> feedback_pb2.FeedbackEvent:
        """Grade one response on the scale from ``minimum`` to ``maximum``."""
        event = _event(context)
        with building("rating"):
            event.rating.CopyFrom(feedback_pb2.Rating(response=response, value=value, minimum=minimum, maximum=maximum))
        return event

    @staticmethod
    def edit(*, edited_text: str, response: int = 0, **context: Unpack[Context]) -> feedback_pb2.FeedbackEvent:
        """Give the text into which a person rewrote one response."""
        event = _event(context)
        with building("edit.edited_text"):
            event.edit.CopyFrom(feedback_pb2.Edit(response=response, edited_text=edited_text))
        return event

    @staticmethod
    def tie(*, first: int = 0, second: int = 1, **context: Unpack[Context]) -> feedback_pb2.FeedbackEvent:
        """Say that two responses were judged equally good."""
        event = _event(context)
        with building("tie"):
            event.tie.CopyFrom(feedback_pb2.Tie(first=first, second=second))
        return event


def publishable_token(token: str, generation_id: str, *, annotator_id: str = "", lifetime_s: float = 900.0) -> str:
    """Make a token for a page, which gives feedback about one generation and can do nothing else. Asks no server.

    Args:
        token: The token of the backend that makes it, which needs the role feedback. Both end together.
        generation_id: The generation.
        annotator_id: Who gives the feedback; the page cannot name another.
        lifetime_s: Seconds for which it is good, at most a day.

    Raises:
        ValueError: The lifetime is not above 0 and at most a day, there is no generation, or ``token`` is none from
            which such tokens are made.
    """
    if not 0 < lifetime_s <= LONGEST_LIFE_S:
        raise ValueError(f"lifetime_s is above 0 and at most {LONGEST_LIFE_S}")
    return make_publishable(token, generation_id, annotator_id, time.time() + lifetime_s)


def _event(context: Context) -> feedback_pb2.FeedbackEvent:
    _check_names(context)
    prompt, event_time = context.get("prompt"), context.get("event_time")
    if event_time is not None and not isinstance(event_time, datetime):
        raise invalid("event_time", f"is {type(event_time).__name__}, not a datetime")
    if event_time is not None and event_time.tzinfo is None:
        raise ValueError("event_time has no time zone")
    event = feedback_pb2.FeedbackEvent(
        event_id=text_field("event_id", context.get("event_id") or str(uuid.uuid4())),
        generation_id=text_field("generation_id", context.get("generation_id", "")),
        responses=responses_list(context.get("responses", ())),
        annotator_id=text_field("annotator_id", context.get("annotator_id", "")),
        source=source_pb(context.get("source", "human")),
        aspect=text_field("aspect", context.get("aspect", "")),
        guideline_version=text_field("guideline_version", context.get("guideline_version", "")),
    )
    with building("display_order"):
        event.display_order.extend(context.get("display_order", ()))
    with building("tags"):
        event.tags.update(context.get("tags") or {})
    if prompt is not None:
        event.prompt.CopyFrom(prompt_pb(prompt))
    if event_time is not None:
        stamp = timestamp_pb2.Timestamp()
        try:
            stamp.FromDatetime(event_time)
        except (ValueError, OverflowError) as error:
            raise invalid("event_time", "is outside the years 1 to 9999 in UTC") from error
        event.event_time.CopyFrom(stamp)
    return event


def _check_names(context: Context) -> None:
    """Raise TypeError for fields that no signal has: a TypedDict checks nothing when the program runs."""
    known = Context.__annotations__
    wrong = [name for name in context if name not in known]
    if not wrong:
        return
    guesses = {name: difflib.get_close_matches(name, known, n=1) for name in wrong}
    named = (f"{name} (did you mean {guess[0]}?)" if guess else name for name, guess in guesses.items())
    raise TypeError(f"feedback has no field {', '.join(named)}; its fields are {', '.join(known)}")
