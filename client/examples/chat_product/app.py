"""A chat product in one file: streamed answers, thumbs, and now and then two answers to choose from.

The browser never sees the product's own token. For each answer the product makes a publishable token, which gives
feedback about that one generation.

    pip install fastapi uvicorn openai                 # beside rewardloop, whose README says how it is installed
    rewardloop up --gateway-args=--cors-origins=http://127.0.0.1:8000      # in another terminal
    REWARDLOOP_TOKEN=... uvicorn app:app --port 8000   # in this folder; the token only if the deployment has callers
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, StreamingResponse
from openai import APIError, AsyncOpenAI
from pydantic import BaseModel

from rewardloop_client import publishable_token

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "javascript" / "rewardloop-feedback.js"
DOOR = os.environ.get("REWARDLOOP_DOOR", "http://127.0.0.1:50080")
TOKEN = os.environ.get("REWARDLOOP_TOKEN", "rlt_no_token_is_needed")
PAIR_SHARE = float(os.environ.get("PAIR_SHARE", "0.2"))

app = FastAPI(docs_url=None, redoc_url=None)
policy = AsyncOpenAI(base_url=f"{DOOR}/v1", api_key=TOKEN)


class Question(BaseModel):
    """The conversation so far, and who asks: an opaque id of the signed-in user."""

    messages: list[dict[str, str]]
    user: str


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(HERE / "page.html")


@app.get("/rewardloop-feedback.js")
async def script() -> FileResponse:
    return FileResponse(SCRIPT, media_type="text/javascript")


@app.post("/ask")
async def ask(question: Question) -> StreamingResponse:
    """Stream JSON lines: how many answers come, parts of their texts, and at the end what feedback needs."""
    return StreamingResponse(_answers(question), media_type="application/x-ndjson")


async def _answers(question: Question) -> AsyncIterator[str]:
    count = 2 if random.random() < PAIR_SHARE else 1
    yield _line(answers=count)
    generation_id = ""
    try:
        stream = await policy.chat.completions.create(
            model="policy",
            messages=question.messages,  # type: ignore[arg-type]
            n=count,
            stream=True,
        )
        async for chunk in stream:
            generation_id = chunk.id
            for choice in chunk.choices:
                if choice.delta.content:
                    yield _line(answer=choice.index, text=choice.delta.content)
    except APIError as error:
        yield _line(error=error.message)
        return
    token = publishable_token(TOKEN, generation_id, annotator_id=question.user)
    yield _line(generation_id=generation_id, token=token, door=DOOR)


def _line(**fields: object) -> str:
    return json.dumps(fields) + "\n"
