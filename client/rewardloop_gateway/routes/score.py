"""``POST /v1/score``: scores of the responses to one prompt, or of many groups."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Request
from pydantic import BaseModel, Discriminator, Field, Tag

from rewardloop_client import AsyncRewardloopClient, RewardloopError, ScoreGroup, ScoreResult
from rewardloop_gateway.answers import problem_of
from rewardloop_gateway.shapes import Body, ErrorDetail, Prompt, VersionShape, prompt_of, version_json
from rewardloop_gateway.waiting import while_wanted

_MOST_GROUPS = 1024
_INT64 = 2**63 - 1


class ScoreBody(Body):
    """A prompt and the responses to compare. One version scores all of them."""

    prompt: Prompt
    responses: Annotated[list[str], Field(min_length=1, description="scored together, by one version")]
    model: str = Field("", description="reward model or mixture; default: reward")
    reference: str = Field("", description="the right answer, for a mixture that compares with it")
    pin_version: str | None = Field(None, description="score with exactly this version")
    min_version: Annotated[int | None, Field(ge=0, le=_INT64, description="score with this version or a later one")] = (
        None
    )
    truncation: Literal["allowed", "refused"] = Field("allowed", description="what becomes of a text that is too long")
    lane: Literal["production", "trainer"] = Field("production", description="production goes before a trainer")


class ScoreGroups(Body):
    """Many groups, each of which fails alone."""

    groups: Annotated[list[ScoreBody], Field(min_length=1, max_length=_MOST_GROUPS)]


def _form(value: object) -> str:
    """Return the tag of the form that a body has; see `shapes`."""
    is_many = isinstance(value, ScoreGroups) or (isinstance(value, dict) and "groups" in value)
    return "~many" if is_many else "~one"


_Body: TypeAlias = Annotated[
    Annotated[ScoreBody, Tag("~one")] | Annotated[ScoreGroups, Tag("~many")], Discriminator(_form)
]


class ResponseScoreShape(BaseModel):
    """The score of one response."""

    score: float = Field(description="calibrated: comparable across versions")
    logit: float = Field(description="raw")
    uncertainty: float = Field(description="spread of the score heads, on the scale of the score")
    token_count: int
    truncated: bool
    meets_floors: bool | None


class PartShape(BaseModel):
    """What one part of a mixture says."""

    name: str
    model: str
    model_version: VersionShape | None
    values: list[float]
    uncertainties: list[float]
    weight: float
    floor: float | None


class ScoreAnswer(BaseModel):
    """The scores, in the order of the responses."""

    scores: list[ResponseScoreShape]
    model_version: VersionShape
    parts: list[PartShape]


class ScoreItem(BaseModel):
    """The outcome of one group: `error` is there if it failed."""

    scores: list[ResponseScoreShape] = []
    model_version: VersionShape | None = None
    parts: list[PartShape] = []
    error: ErrorDetail | None = None


class ScoreAnswers(BaseModel):
    """One item for each group, in order."""

    items: list[ScoreItem]


def routes(client: AsyncRewardloopClient) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["scores"])

    @router.post("/v1/score", response_model=ScoreAnswer | ScoreAnswers)
    async def score(request: Request, body: _Body) -> dict[str, Any]:
        """Score the responses to a prompt, or many such ``groups``."""
        if isinstance(body, ScoreGroups):
            groups = [_group(each) for each in body.groups]
            outcomes = await while_wanted(request, client.score_batch(groups))
            return {"items": [_item(outcome) for outcome in outcomes]}
        return score_json(await while_wanted(request, _score(client, body)))

    return router


async def _score(client: AsyncRewardloopClient, body: ScoreBody) -> ScoreResult:
    return await client.score(
        prompt_of(body.prompt),
        body.responses,
        truncation=body.truncation,
        pin_version=body.pin_version,
        min_version=body.min_version,
        lane=body.lane,
        model=body.model,
        reference=body.reference,
    )


def _group(body: ScoreBody) -> ScoreGroup:
    return ScoreGroup(
        prompt_of(body.prompt),
        body.responses,
        truncation=body.truncation,
        pin_version=body.pin_version,
        min_version=body.min_version,
        lane=body.lane,
        model=body.model,
        reference=body.reference,
    )


def score_json(result: ScoreResult) -> dict[str, Any]:
    """Return the scores of a group as JSON."""
    return {
        "scores": [
            {
                "score": each.score,
                "logit": each.logit,
                "uncertainty": each.uncertainty,
                "token_count": each.token_count,
                "truncated": each.truncated,
                "meets_floors": each.meets_floors,
            }
            for each in result.scores
        ],
        "model_version": version_json(result.model_version),
        "parts": [
            {
                "name": part.name,
                "model": part.model,
                "model_version": None if part.model_version is None else version_json(part.model_version),
                "values": list(part.values),
                "uncertainties": list(part.uncertainties),
                "weight": part.weight,
                "floor": part.floor,
            }
            for part in result.parts
        ],
    }


def _item(outcome: ScoreResult | RewardloopError) -> dict[str, Any]:
    if isinstance(outcome, RewardloopError):
        return problem_of(outcome).body()
    return score_json(outcome)
