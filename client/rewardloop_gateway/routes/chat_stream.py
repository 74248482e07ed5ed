"""A completion as server-sent events, each of which is sent when its text has been sampled."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from starlette.responses import StreamingResponse

from rewardloop_client import CandidateText, Generation, RewardloopError
from rewardloop_gateway.answers import problem_of
from rewardloop_gateway.routes.chat_shapes import ChatRequest
from rewardloop_gateway.routes.completion import extras_json, logprobs_json, usage_json
from rewardloop_gateway.waiting import while_wanted

_DONE = "data: [DONE]\n\n"
# Proxies that gather an answer before they pass it on are told not to.
_HEADERS = {"x-accel-buffering": "no"}


async def streamed(
    request: Request, body: ChatRequest, events: AsyncGenerator[CandidateText | Generation, None]
) -> StreamingResponse:
    """Return the stream once the first event has come, so that a call which fails has its status.

    A caller that goes away ends the sampling. Raises RewardloopError, and Problem if the caller goes away before.
    """
    first = await while_wanted(request, anext(events))
    chunks = _Chunks(body)

    async def sent() -> AsyncIterator[str]:
        async with aclosing(events):
            try:
                for line in chunks.of(first):
                    yield line
                async for event in events:
                    for line in chunks.of(event):
                        yield line
            except RewardloopError as error:
                # The status is sent already. The OpenAI clients raise an error for such an event.
                yield _line(problem_of(error).body())
                return
        yield _DONE

    return StreamingResponse(sent(), media_type="text/event-stream", headers=_HEADERS)


class _Chunks:
    """Makes the chunks of one completion."""

    def __init__(self, body: ChatRequest) -> None:
        self._body = body
        self._created = int(time.time())
        self._has_begun: set[int] = set()

    def of(self, event: CandidateText | Generation) -> list[str]:
        """Return the lines of an event."""
        if isinstance(event, CandidateText):
            return [self._said(event.generation_id, event.candidate, event.text)]
        return self._end(event)

    def _said(self, generation_id: str, candidate: int, text: str) -> str:
        role = {} if candidate in self._has_begun else {"role": "assistant"}
        self._has_begun.add(candidate)
        return self._chunk(generation_id, [_choice(candidate, {**role, "content": text})])

    def _end(self, generation: Generation) -> list[str]:
        lines = []
        for i, candidate in enumerate(generation.candidates):
            if i not in self._has_begun:  # it has no text
                lines.append(self._said(generation.generation_id, i, ""))
            logprobs = logprobs_json(candidate) if self._body.logprobs else None
            choice = _choice(i, {}, candidate.finish_reason, logprobs)
            is_last = i + 1 == len(generation.candidates)
            extras = {"rewardloop": extras_json(generation)} if is_last else {}
            lines.append(self._chunk(generation.generation_id, [choice], **extras))
        options = self._body.stream_options
        if options is not None and options.include_usage:
            lines.append(self._chunk(generation.generation_id, [], usage=usage_json(generation)))
        return lines

    def _chunk(self, generation_id: str, choices: list[dict[str, Any]], **more: Any) -> str:
        return _line(
            {
                "id": generation_id,
                "object": "chat.completion.chunk",
                "created": self._created,
                "model": self._body.model,
                "choices": choices,
                **more,
            }
        )


def _choice(
    index: int, delta: dict[str, Any], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
