"""The reward model under other projects' routes: text-embeddings-inference, OpenRLHF, vLLM.

A reward model scores a response to a prompt. Where the other project's request has a single text, the request is
refused, because nobody can tell where its prompt ends.
"""

from __future__ import annotations

import math
import time
import uuid
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Request
from pydantic import BaseModel, Discriminator, Field, Tag

from rewardloop_client import AsyncRewardloopClient, ResponseScore, RewardloopError, ScoreGroup, ScoreResult, Violation
from rewardloop_client._types import PromptLike
from rewardloop_gateway.answers import invalid, problem_of, refused
from rewardloop_gateway.shapes import Body, Message, messages_of
from rewardloop_gateway.waiting import while_wanted

_MOST = 1024
_LABEL = "LABEL_0"  # as Hugging Face names the only label of a model with one output
_SINGLE = "has a single text: give the prompt and its response"


def _form(value: object) -> str:
    """Return the tag of the form that a value has; see `shapes`."""
    if isinstance(value, list):
        return "~batch" if value and isinstance(value[0], list) else "~pair"
    return "~single"


class RerankRequest(Body):
    """A query and the texts to rank."""

    query: str
    texts: Annotated[list[str], Field(min_length=1, max_length=_MOST)]
    raw_scores: bool = Field(False, description="return logits instead of values between 0 and 1")
    return_text: bool = False
    truncate: bool | None = Field(False, description="shorten what is too long instead of refusing it")
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"


class Rank(BaseModel):
    """A text's place: its index in the request, and its score."""

    index: int
    score: float
    text: str | None = None


_Inputs: TypeAlias = Annotated[
    Annotated[str, Tag("~single")]
    | Annotated[list[str], Tag("~pair"), Field(min_length=1, max_length=2)]
    | Annotated[
        list[Annotated[list[str], Field(min_length=1, max_length=2)]],
        Tag("~batch"),
        Field(min_length=1, max_length=_MOST),
    ],
    Discriminator(_form),
]


class PredictRequest(Body):
    """A pair of prompt and response, or a batch of pairs."""

    inputs: _Inputs
    raw_scores: bool = Field(False, description="return logits instead of values between 0 and 1")
    truncate: bool | None = Field(False, description="shorten what is too long instead of refusing it")
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"


class Prediction(BaseModel):
    """The score of the only label."""

    score: float
    label: str


class RewardRequest(Body):
    """Texts to reward, each a prompt with its response."""

    query: Annotated[list[str], Field(min_length=1, max_length=_MOST)]
    prompts: list[str] | None = Field(None, description="the prompts with which the texts begin")
    labels: list[str | None] | None = Field(None, description="right answers, for a mixture that compares with them")


class Rewards(BaseModel):
    """The calibrated scores, in the order of the texts."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class ClassifyRequest(Body):
    """A conversation that ends with the answer to score."""

    model: str = Field("reward", description="reward model or mixture")
    messages: Annotated[list[Message] | None, Field(min_length=2)] = None
    input: str | list[str] | list[int] | None = Field(None, description="refused: it has no prompt")
    use_activation: bool = Field(True, description="return a value between 0 and 1 instead of the logit")


class ClassifyData(BaseModel):
    """The probability of the only class."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyUsage(BaseModel):
    """How many tokens were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None


class Classified(BaseModel):
    """A classification as vLLM writes it."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassifyData]
    usage: ClassifyUsage


def routes(client: AsyncRewardloopClient) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["compatible"])

    @router.post("/rerank", response_model=list[Rank], response_model_exclude_none=True)
    async def rerank(request: Request, body: RerankRequest) -> Any:
        """Rank texts as answers to a query, best first, as text-embeddings-inference does."""
        _check_direction(body.truncation_direction)
        scoring = _one(client, body.query, body.texts, body.truncate, {"prompt": "query", "responses": "texts"})
        found = await while_wanted(request, scoring)
        ranks = [
            {
                "index": i,
                "score": _value(each, body.raw_scores),
                **({"text": body.texts[i]} if body.return_text else {}),
            }
            for i, each in enumerate(found.scores)
        ]
        return sorted(ranks, key=lambda rank: -rank["score"])

    @router.post("/predict", response_model=list[Prediction] | list[list[Prediction]])
    async def predict(request: Request, body: PredictRequest) -> Any:
        """Score pairs of prompt and response, as text-embeddings-inference classifies pairs."""
        _check_direction(body.truncation_direction)
        pairs = _pairs(body.inputs)
        groups = [ScoreGroup(prompt, [response], truncation=_truncation(body.truncate)) for prompt, response in pairs]
        found = await while_wanted(request, _all(client, groups, "inputs"))
        predictions = [[{"score": _value(each.scores[0], body.raw_scores), "label": _LABEL}] for each in found]
        return predictions if _form(body.inputs) == "~batch" else predictions[0]

    @router.post("/get_reward", response_model=Rewards)
    async def get_reward(request: Request, body: RewardRequest) -> Any:
        """Reward texts as OpenRLHF's remote reward model does. Set --remote_rm_url to this address."""
        found = await while_wanted(request, _all(client, _rewarded(body), "query"))
        rewards = [each.scores[0].score for each in found]
        spread = [each.scores[0].uncertainty for each in found]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"uncertainty": spread}}

    @router.post("/classify", response_model=Classified)
    async def classify(request: Request, body: ClassifyRequest) -> Any:
        """Score the last turn of a conversation, as vLLM classifies it."""
        prompt, response = _last_turn(body)
        scoring = _one(client, prompt, [response], True, {}, "" if body.model == "reward" else body.model)
        found = await while_wanted(request, scoring)
        tokens = found.scores[0].token_count
        return {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": body.model,
            "data": [
                {
                    "index": 0,
                    "label": _LABEL,
                    "probs": [_value(found.scores[0], not body.use_activation)],
                    "num_classes": 1,
                }
            ],
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }

    return router


async def _one(
    client: AsyncRewardloopClient,
    prompt: PromptLike,
    responses: list[str],
    truncate: bool | None,
    names: dict[str, str],
    model: str = "",
) -> ScoreResult:
    try:
        return await client.score(prompt, responses, truncation=_truncation(truncate), model=model)
    except RewardloopError as error:
        raise problem_of(error, names) from error


async def _all(client: AsyncRewardloopClient, groups: list[ScoreGroup], field: str) -> list[ScoreResult]:
    """Score groups, of which none may fail: these routes have no place for the error of one. Raises Problem."""
    found: list[ScoreResult] = []
    for i, outcome in enumerate(await client.score_batch(groups)):
        if isinstance(outcome, RewardloopError):
            problem = problem_of(outcome)
            problem.violations = tuple(Violation(f"{field}[{i}]", v.description) for v in problem.violations)
            raise problem
        found.append(outcome)
    return found


def _value(score: ResponseScore, is_raw: bool) -> float:
    """Return the logit, or the calibrated score between 0 and 1, by the logistic function."""
    if is_raw:
        return score.logit
    if score.score >= 0:
        return 1 / (1 + math.exp(-score.score))
    return (power := math.exp(max(score.score, -700.0))) / (1 + power)


def _truncation(truncate: bool | None) -> Literal["allowed", "refused"]:
    return "allowed" if truncate else "refused"


def _check_direction(direction: str) -> None:
    """Refuse the other direction: a reward model shortens the prompt first, and keeps its latest turns."""
    if direction.lower() != "right":
        raise refused("truncation_direction", "only Right: what is too long is shortened as the model's own rules say")


def _pairs(inputs: Any) -> list[tuple[str, str]]:
    form = _form(inputs)
    batch: list[list[str]] = [[inputs]] if form == "~single" else [inputs] if form == "~pair" else inputs
    short = [i for i, each in enumerate(batch) if len(each) != 2]
    if short:
        raise refused(f"inputs[{short[0]}]" if form == "~batch" else "inputs", _SINGLE)
    return [(prompt, response) for prompt, response in batch]


def _rewarded(body: RewardRequest) -> list[ScoreGroup]:
    """Return each text as a prompt and its response. Raises Problem for a text that does not begin with its prompt."""
    if body.prompts is None:
        raise refused("prompts", "is missing, and without it nobody can tell where the prompt of a text ends")
    if len(body.prompts) != len(body.query):
        raise refused("prompts", f"has {len(body.prompts)} texts for {len(body.query)} of query")
    if body.labels is not None and len(body.labels) != len(body.query):
        raise refused("labels", f"has {len(body.labels)} texts for {len(body.query)} of query")
    wrong = [
        Violation(f"query[{i}]", "does not begin with its prompt, or has no response")
        for i, (text, prompt) in enumerate(zip(body.query, body.prompts, strict=True))
        if not text.startswith(prompt) or len(text) == len(prompt)
    ]
    if wrong:
        raise invalid(wrong)
    labels = body.labels or [None] * len(body.query)
    return [
        ScoreGroup(prompt, [text[len(prompt) :]], reference=label or "")
        for text, prompt, label in zip(body.query, body.prompts, labels, strict=True)
    ]


def _last_turn(body: ClassifyRequest) -> tuple[list[dict[str, Any]], str]:
    if body.input is not None:
        raise refused("input", "is a text without a prompt: give messages that end with the assistant's turn")
    if body.messages is None:
        raise refused("messages", "is missing")
    last = body.messages[-1]
    if last.role != "assistant" or not isinstance(last.content, str) or last.tool_calls:
        raise refused(f"messages[{len(body.messages) - 1}]", "is not the assistant's turn with a text, which is scored")
    return messages_of(body.messages[:-1]), last.content
