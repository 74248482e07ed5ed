"""The reward model under other projects' routes: text-embeddings-inference, OpenRLHF, vLLM.

A reward model scores a response to a prompt. Where the other project's request has a single text, the request is
refused, because nobody can tell where its prompt ends.
"""

from __future__ import annotations

import math
import time
import uuid
from typing import Any, Literal

from fastapi import APIRouter, Request

from rewardloop_client import AsyncRewardloopClient, ResponseScore, RewardloopError, ScoreGroup, ScoreResult, Violation
from rewardloop_client._types import PromptLike
from rewardloop_gateway.answers import invalid, problem_of, refused
from rewardloop_gateway.routes.compatible_shapes import (
    Classified,
    ClassifyRequest,
    Prediction,
    PredictRequest,
    Rank,
    RerankRequest,
    RewardRequest,
    Rewards,
    form_of,
)
from rewardloop_gateway.shapes import messages_of
from rewardloop_gateway.waiting import while_wanted

_LABEL = "LABEL_0"  # as Hugging Face names the only label of a model with one output
_SINGLE = "has a single text: give the prompt and its response"


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
        return predictions if form_of(body.inputs) == "~batch" else predictions[0]

    @router.post("/get_reward", response_model=Rewards)
    async def get_reward(request: Request, body: RewardRequest) -> Any:
        """Reward texts as OpenRLHF's remote reward model does. Set --reward.remote_url to this address."""
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
        return _classified(body, found.scores[0])

    return router


def _classified(body: ClassifyRequest, score: ResponseScore) -> dict[str, Any]:
    probability = _value(score, not body.use_activation)
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model,
        "data": [{"index": 0, "label": _LABEL, "probs": [probability], "num_classes": 1}],
        "usage": {
            "prompt_tokens": score.token_count,
            "total_tokens": score.token_count,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }


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
    form = form_of(inputs)
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
