"""A chat model at an OpenAI-compatible endpoint; for `rewardloop[judge]`.

Each call is one attempt: `AskedChat` repeats calls, so that every attempt is counted in the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

from rewardloop.process.socket_owner import is_loopback
from rewardloop_trainer.judging.chat import Reply, Request
from rewardloop_trainer.judging.judge import JudgeAway, JudgeRefused, JudgeUnusable

_UNUSABLE = (401, 403, 404, 405)
_LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach an endpoint.

    Attributes:
        url: Base URL, such as https://host/v1.
        model: Name of the model there.
        api_key: Sent as a bearer token; endpoints without keys ignore it.
        timeout_s: Deadline of one reply, in seconds.
    """

    url: str
    model: str
    api_key: str = ""
    timeout_s: float = 60.0

    @property
    def address(self) -> str:
        """The endpoint as messages name it, without what the URL may hold beside host and port."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}" + (f":{parts.port}" if parts.port else "")


class EndpointChat:
    """A `Chat` at an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Connect nothing yet."""
        self._endpoint = endpoint
        # A proxy of the environment cannot reach what listens on this machine's loopback.
        uses_proxy = not is_loopback(urlsplit(endpoint.url).hostname or "")
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=endpoint.api_key or "none",
            timeout=endpoint.timeout_s,
            max_retries=0,
            http_client=cast(Any, openai.DefaultHttpx2Client(trust_env=uses_proxy, timeout=endpoint.timeout_s)),
        )

    @property
    def name(self) -> str:
        """The model's name. The replies say which version of it answered."""
        return self._endpoint.model

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def complete(self, request: Request) -> Reply:
        """Ask once.

        Raises:
            JudgeAway: If there is no reply in time, a status of 408, 409, 429 or 5xx, or a reply of another form.
            JudgeUnusable: For a status of 401, 403, 404 or 405.
            JudgeRefused: For every other status.
        """
        where = self._endpoint.address
        try:
            found: Any = self._client.chat.completions.create(
                model=self._endpoint.model,
                messages=cast(Any, [{"role": turn.role, "content": turn.content} for turn in request.messages]),
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                seed=request.seed,
            )
        except openai.APITimeoutError as error:
            raise JudgeAway("timeout", f"{where}: no reply in {self._endpoint.timeout_s:g} s") from error
        except openai.APIConnectionError as error:
            raise JudgeAway("connection", f"{where}: {error.__cause__ or error}") from error
        except openai.APIStatusError as error:
            raise _of_status(where, error) from error
        except (openai.OpenAIError, ValueError) as error:  # a body that is not JSON, or not of the form
            raise JudgeAway("garbage", f"{where}: the reply cannot be read: {type(error).__name__}") from error
        return _reply(where, found)


def _of_status(where: str, error: openai.APIStatusError) -> JudgeAway | JudgeRefused | JudgeUnusable:
    status, said = error.status_code, f"{where}: status {error.status_code}"
    if status in _UNUSABLE:
        return JudgeUnusable(f"{said}: {_shortened(error)}")
    if status in (408, 409, 429) or status >= 500:
        reason = "busy" if status == 429 else "timeout" if status == 408 else "server"
        return JudgeAway(reason, said, _retry_after(error.response.headers))
    return JudgeRefused(f"{said}: {_shortened(error)}")


def _shortened(error: openai.APIStatusError) -> str:
    return " ".join(error.message.split())[:200]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait; None without a readable number. A date is not read."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, _LONGEST_WAIT_S)
    return None


def _reply(where: str, found: Any) -> Reply:
    """Read a completion, whose types the client library does not check. Raises JudgeAway."""
    choices = getattr(found, "choices", None)
    if not isinstance(found, ChatCompletion) or not isinstance(choices, list) or not choices:
        raise JudgeAway("garbage", f"{where}: the reply is no chat completion")
    message: Any = getattr(choices[0], "message", None)
    text = getattr(message, "content", None)
    if not isinstance(text, str):
        text = getattr(message, "refusal", None)
    if not isinstance(text, str):
        raise JudgeAway("garbage", f"{where}: the reply has no text")
    model, usage = found.model if isinstance(found.model, str) else "", found.usage
    return Reply(
        text,
        model,
        _count(getattr(usage, "prompt_tokens", None)),
        _count(getattr(usage, "completion_tokens", None)),
        choices[0].finish_reason == "length",
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else -1
