"""``POST /v1/chat/completions`` and ``GET /v1/models``, as the OpenAI API has them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from rewardloop_client import AsyncRewardloopClient, CandidateText, Generation, RewardloopError
from rewardloop_gateway.answers import problem_of
from rewardloop_gateway.routes.chat_shapes import POLICY, ChatAnswer, ChatRequest
from rewardloop_gateway.routes.chat_stream import streamed
from rewardloop_gateway.routes.completion import completion_json
from rewardloop_gateway.shapes import messages_of
from rewardloop_gateway.waiting import while_wanted

# What Generate calls the fields.
NAMES = {
    "prompt.conversation.messages": "messages",
    "prompt.messages": "messages",
    "prompt": "messages",
    "candidates": "n",
    "max_new_tokens": "max_tokens",
    "pin_version": "model",
}


class ModelShape(BaseModel):
    """A model that a completion may name."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The live policy, and its versions that are in memory."""

    object: str
    data: list[ModelShape]


def routes(client: AsyncRewardloopClient, timeout_s: float) -> APIRouter:
    """Return the routes. An answer may take ``timeout_s`` seconds."""
    router = APIRouter(tags=["policy"])
    stream = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}

    @router.post("/v1/chat/completions", response_model=ChatAnswer, responses={200: stream})
    async def complete(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation with the policy. The completion's id is the generation_id of feedback."""
        body.check()
        try:
            if body.stream:
                return await streamed(request, body, _stream(client, body, timeout_s))
            generation = await while_wanted(request, _generate(client, body, timeout_s))
        except RewardloopError as error:
            raise problem_of(error, NAMES) from error
        return JSONResponse(completion_json(body, generation))

    @router.get("/v1/models", response_model=ModelList)
    async def models() -> dict[str, Any]:
        """List the live policy, and the versions that can be asked for by number."""
        found = [info for info in await client.list_versions(POLICY) if info.state in ("active", "canary", "warm")]
        live = [info for info in found if info.state == "active"]
        named = [(POLICY, info) for info in live] + [(f"{POLICY}:{info.version}", info) for info in found]
        return {
            "object": "list",
            "data": [
                {
                    "id": name,
                    "object": "model",
                    "created": 0 if info.create_time is None else int(info.create_time.timestamp()),
                    "owned_by": "rewardloop",
                }
                for name, info in named
            ],
        }

    return router


def _settings(body: ChatRequest, timeout_s: float) -> dict[str, Any]:
    return {
        "candidates": body.n or 1,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "max_new_tokens": body.max_completion_tokens or body.max_tokens or 0,
        "stop": body.stops(),
        "pin_version": body.version(),
        "token_log_probabilities": bool(body.logprobs),
        "timeout_s": timeout_s,
    }


async def _generate(client: AsyncRewardloopClient, body: ChatRequest, timeout_s: float) -> Generation:
    return await client.generate(
        messages_of(body.messages),
        best_of=body.best_of or 0,
        selection=body.selection,
        random_share=body.random_share,
        reward_model=body.reward_model or "",
        **_settings(body, timeout_s),
    )


def _stream(
    client: AsyncRewardloopClient, body: ChatRequest, timeout_s: float
) -> AsyncGenerator[CandidateText | Generation, None]:
    return client.generate_stream(messages_of(body.messages), **_settings(body, timeout_s))
