"""``POST /v1/feedback``: signals of every kind, one or many. ``POST /v1/feedback/tokens``: tokens for pages."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Request
from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from rewardloop.formats.tokens import LONGEST_LIFE_S, claims_of, make_publishable
from rewardloop.v1 import feedback_pb2
from rewardloop_client import AsyncRewardloopClient, Feedback, RecordResult, RewardloopError
from rewardloop_gateway.answers import Problem, invalid, problem_of, refused, text_of, violations_of
from rewardloop_gateway.caller import bearer
from rewardloop_gateway.shapes import Body, ErrorDetail, Prompt, prompt_of
from rewardloop_gateway.waiting import while_wanted

_Index: TypeAlias = Annotated[int, Field(ge=0, le=63)]
_MOST_EVENTS = 1000
_KINDS = ("choice", "ranking", "thumb", "rating", "edit", "tie")
_PLACE = re.compile(r"events\[\d+\]")
# The fields of a kind are fields of the signal here.
_NAMES = {**{f"event.{kind}": "" for kind in _KINDS}, **dict.fromkeys(("event", *_KINDS), "")}


class Signal(Body):
    """What every signal may say. It names the generation that it is about, or has a prompt and responses of its own."""

    generation_id: str = Field("", description="the generation that showed the responses: the id of a completion")
    prompt: Prompt | None = Field(None, description="what was asked; required without a generation")
    responses: list[str] = Field([], description="required without a generation")
    event_id: str = Field("", description="recorded once; made here if it is left out; send it again to try again")
    annotator_id: str = Field("", description="opaque id of the person or model that judged")
    source: Literal["human", "llm_judge", "implicit"] = Field("human", description="who or what judged")
    tags: dict[str, str] = Field({}, description="free labels by which results are sliced")
    event_time: Annotated[datetime | None, Field(strict=False, description="when, with a time zone")] = None
    display_order: list[_Index] = Field([], description="responses in the order in which the person saw them")
    aspect: str = Field("", description="the reward model that learns from it; default: reward")
    guideline_version: str = Field("", description="version of the guidelines that the person was given")


class ChoiceSignal(Signal):
    """One of two responses is preferred."""

    kind: Literal["choice"]
    chosen: _Index = Field(description="index of the better response")
    rejected: _Index = Field(description="index of the other one")
    strength: float | None = Field(None, description="above 0 and at most 1")


class RankingSignal(Signal):
    """All responses in order of preference, best first."""

    kind: Literal["ranking"]
    order: list[_Index] = Field(description="indices of all responses, best first")


class ThumbSignal(Signal):
    """A thumb up or down."""

    kind: Literal["thumb"]
    up: bool = Field(description="true for up, false for down")
    response: _Index = Field(0, description="index of the response")


class RatingSignal(Signal):
    """A grade on a scale."""

    kind: Literal["rating"]
    value: float = Field(description="the grade")
    minimum: float = Field(description="the worst grade of the scale")
    maximum: float = Field(description="the best grade of the scale")
    response: _Index = Field(0, description="index of the response")


class EditSignal(Signal):
    """A response as a person rewrote it."""

    kind: Literal["edit"]
    edited_text: str = Field(description="the better text")
    response: _Index = Field(0, description="index of the response that was edited")


class TieSignal(Signal):
    """Two responses are equally good."""

    kind: Literal["tie"]
    first: _Index = Field(0, description="index of one response")
    second: _Index = Field(1, description="index of the other one")


def _kind(value: object) -> str:
    """Return the tag of the form that a body has; see `shapes`."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if kind is None and (isinstance(value, ManySignals) or (isinstance(value, dict) and "events" in value)):
        return "~many"
    return f"~{kind}"


_OneSignal: TypeAlias = Annotated[
    Annotated[ChoiceSignal, Tag("~choice")]
    | Annotated[RankingSignal, Tag("~ranking")]
    | Annotated[ThumbSignal, Tag("~thumb")]
    | Annotated[RatingSignal, Tag("~rating")]
    | Annotated[EditSignal, Tag("~edit")]
    | Annotated[TieSignal, Tag("~tie")],
    Discriminator(_kind),
]


@dataclass(frozen=True, slots=True)
class Misshapen:
    """A signal of many that has another shape than a signal: the id that it was sent with, and pydantic's errors."""

    event_id: str
    errors: Sequence[Any]


def _alone(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """Read a signal of many, so that a misshapen one fails alone."""
    try:
        return read(value)
    except ValidationError as error:
        event_id = value.get("event_id") if isinstance(value, dict) else None
        return Misshapen(event_id if isinstance(event_id, str) else "", error.errors())


class ManySignals(Body):
    """Many signals, each of which fails alone."""

    events: Annotated[
        list[Annotated[_OneSignal, WrapValidator(_alone)]], Field(min_length=1, max_length=_MOST_EVENTS)
    ] = Field(description="1 to 1000 signals")


_Body: TypeAlias = Annotated[
    Annotated[ChoiceSignal, Tag("~choice")]
    | Annotated[RankingSignal, Tag("~ranking")]
    | Annotated[ThumbSignal, Tag("~thumb")]
    | Annotated[RatingSignal, Tag("~rating")]
    | Annotated[EditSignal, Tag("~edit")]
    | Annotated[TieSignal, Tag("~tie")]
    | Annotated[ManySignals, Tag("~many")],
    Discriminator(_kind),
]


class Recorded(BaseModel):
    """A signal that is durable."""

    event_id: str
    stream_id: str = Field(description="its place in the stream; empty for a duplicate and for one in the spool")
    duplicate: bool = Field(description="it had been recorded before under its event_id")


class RecordedItem(BaseModel):
    """The outcome of one signal of many: `error` is there if it failed."""

    event_id: str
    stream_id: str = ""
    duplicate: bool = False
    error: ErrorDetail | None = None


class RecordedMany(BaseModel):
    """One item for each signal, in order."""

    items: list[RecordedItem]


class TokenRequest(Body):
    """The generation about which a page may give feedback, and for how long."""

    generation_id: Annotated[str, Field(min_length=1, max_length=256, description="the id of the completion")]
    annotator_id: Annotated[str, Field(max_length=128, description="whose feedback it is; default: anybody's")] = ""
    lifetime_s: Annotated[int, Field(ge=1, le=LONGEST_LIFE_S, description="seconds for which it is good")] = 900


class PublishableToken(BaseModel):
    """A token that a page may hold."""

    token: str
    expires: int = Field(description="Unix time in seconds")


def routes(client: AsyncRewardloopClient) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["feedback"])

    @router.post("/v1/feedback", response_model=Recorded | RecordedMany)
    async def record(request: Request, body: _Body) -> dict[str, Any]:
        """Record one signal, or many as ``events``. The answer comes once they are durable."""
        if isinstance(body, ManySignals):
            return {"items": await _record_many(request, client, body.events)}
        event = _event(body, "")
        try:
            recorded = await while_wanted(request, client.record(event))
        except RewardloopError as error:
            raise problem_of(error, _NAMES) from error
        return _recorded(event, recorded)

    @router.post("/v1/feedback/tokens", response_model=PublishableToken)
    async def make_token(body: TokenRequest) -> dict[str, Any]:
        """Make a token with which a page gives feedback about one generation, and nothing else. For backends."""
        if not bearer():
            raise Problem(401, "NO_CREDENTIALS", "a publishable token is made from the bearer token of the request")
        expires = int(time.time()) + body.lifetime_s
        made = make_publishable(bearer(), body.generation_id, body.annotator_id, expires)
        return {"token": made, "expires": expires}

    return router


async def _record_many(
    request: Request, client: AsyncRewardloopClient, signals: Sequence[_OneSignal | Misshapen]
) -> list[dict[str, Any]]:
    """Record the signals that can be recorded, and return an item for each, in order."""
    events: list[feedback_pb2.FeedbackEvent] = []
    items: list[dict[str, Any]] = []
    for i, signal in enumerate(signals):
        try:
            if isinstance(signal, Misshapen):
                raise invalid(violations_of(signal.errors, f"events[{i}]"))
            events.append(_event(signal, f"events[{i}]."))
            items.append({})
        except Problem as problem:
            items.append({"event_id": text_of(signal.event_id), **problem.body()})
    outcomes = await while_wanted(request, client.record_batch(events)) if events else ()
    sent = iter(zip(events, outcomes, strict=True))
    return [item or _item(*next(sent), f"events[{i}]") for i, item in enumerate(items)]


def _event(signal: _OneSignal, place: str) -> feedback_pb2.FeedbackEvent:
    """Return the event of a signal. Raises Problem."""
    fields = {name: getattr(signal, name) for name in type(signal).model_fields if name != "kind"}
    if fields["event_time"] is not None and fields["event_time"].tzinfo is None:
        raise refused(f"{place}event_time", "has no time zone")
    fields["prompt"] = None if signal.prompt is None else prompt_of(signal.prompt)
    claims = claims_of(bearer())
    if claims is not None:
        # The services check it too, with the signature; here it also holds where they ask for no token.
        if signal.generation_id != claims.generation_id:
            raise Problem(403, "NOT_ALLOWED", "this token gives feedback about one other generation alone")
        fields["annotator_id"] = fields["annotator_id"] or claims.annotator_id
    try:
        event: feedback_pb2.FeedbackEvent = getattr(Feedback, signal.kind)(**fields)
    except RewardloopError as error:
        raise invalid(
            type(violation)(place + violation.field, violation.description) for violation in error.violations
        ) from error
    return event


def _recorded(event: feedback_pb2.FeedbackEvent, result: RecordResult) -> dict[str, Any]:
    return {"event_id": event.event_id, "stream_id": result.stream_id, "duplicate": result.duplicate}


def _item(event: feedback_pb2.FeedbackEvent, outcome: RecordResult | RewardloopError, place: str) -> dict[str, Any]:
    """Return the item of a signal that was sent. ``place`` is where it stands in the body, such as ``events[1]``."""
    if isinstance(outcome, RewardloopError):
        return {"event_id": event.event_id, **problem_of(outcome, _names_at(place, outcome)).body()}
    return _recorded(event, outcome)


def _names_at(place: str, error: RewardloopError) -> dict[str, str]:
    """Return what a signal's fields are called here. The services count the signals that they were sent, not all."""
    theirs = {found[0] for violation in error.violations if (found := _PLACE.match(violation.field))}
    roots = (*theirs, "event")
    names = {f"{root}.{kind}": place for root in roots for kind in _KINDS}
    return {**names, **dict.fromkeys((*roots, *_KINDS), place)}
