"""Calls a vLLM server over HTTP: which models it serves, adapters by name, completions by token ids. Needs httpx2.

Of vLLM 0.10.2 and later, which return token ids. Prompts go as ids and answers come as ids, so that text is laid out
and decoded by our own text format, and nothing of the server's chat template or defaults takes part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2

from rewardloop.process.http_servers import address_of, client_arguments, said

MODELS, COMPLETIONS = "/v1/models", "/v1/completions"
_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_MOST_SEED = 2**63
# A probability of 1 may be reported as slightly more, by rounding.
_MOST_LOGPROB = 1e-3


class VllmError(RuntimeError):
    """Base of the errors of calls to a vLLM server.

    VllmError
    ├── VllmUnreachable     no reply in time, or status 5xx or 429, after every attempt; the call may succeed later
    ├── VllmRefused         another status 4xx; the same call would fail again
    │   └── VllmUnknownModel  the server has no model or adapter of that name
    ├── VllmGarbage         a reply that does not answer the request
    └── VllmOtherNumbers    the log-probabilities that it reports are not those that are needed
    """


class VllmUnreachable(VllmError):
    """Raised when every attempt of a call failed for want of a usable reply."""


class VllmRefused(VllmError):
    """Raised when the server rejects a call."""


class VllmUnknownModel(VllmRefused):
    """Raised when the server has no model or adapter of the name that was asked for."""


class VllmGarbage(VllmError):
    """Raised when a reply does not answer the request."""


class VllmOtherNumbers(VllmError):
    """Raised when the log-probabilities that the server reports are not those that are needed."""


@dataclass(frozen=True, slots=True)
class VllmEndpoint:
    """How to reach a vLLM server.

    Attributes:
        url: Base URL.
        name: Name of this trainer on the server, which begins the names of its adapters.
        api_key: Sent as a bearer token unless it is empty.
        parallel: Prompts that are sampled at once.
        timeout_s: Deadline of one reply, in seconds; of a stream, of each part.
        attempts: Attempts of a call before it is given up.
        first_pause_s: Pause before the second attempt, in seconds; it doubles from then on.
    """

    url: str
    name: str = "rewardloop"
    api_key: str = ""
    parallel: int = 64
    timeout_s: float = 600.0
    attempts: int = 4
    first_pause_s: float = 0.5

    @property
    def address(self) -> str:
        """The server as messages name it, without what the URL may hold beside host and port."""
        return f"vllm at {address_of(self.url)}"

    @property
    def http(self) -> Mapping[str, Any]:
        """The arguments of an HTTP client of either kind."""
        return client_arguments(self.url, api_key=self.api_key, parallel=self.parallel, timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class Served:
    """A model or an adapter that the server serves.

    Attributes:
        name: What requests call it.
        is_adapter: Whether it is an adapter on another model.
        max_length: Most tokens of prompt and answer together; None if the server does not say.
    """

    name: str
    is_adapter: bool
    max_length: int | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a completion is asked for.

    Attributes:
        model: Name of the model or adapter.
        prompt: Token ids.
        ends: Ids of which each ends an answer.
        answers: How many answers.
        max_new_tokens: Most tokens of an answer.
        temperature: Divides the logits; 0 is greedy.
        top_p: Mass of the nucleus, in (0, 1].
        seed: Fixes the random numbers, together with an answer's index.
        rules: Further fields of the request, such as a repetition penalty.
    """

    model: str
    prompt: Sequence[int]
    ends: Collection[int]
    answers: int
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    rules: Mapping[str, Any]

    @property
    def body(self) -> dict[str, Any]:
        """The request's body, which names every setting for which the server would have a value of its own."""
        return {
            "model": self.model,
            "prompt": list(self.prompt),
            "n": self.answers,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            # Without these the server would use the values of the base's generation config.
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": self.seed % _MOST_SEED,
            "stop_token_ids": sorted(self.ends),
            "add_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,
            **self.rules,
        }


@dataclass(frozen=True, slots=True)
class Completed:
    """One answer. ``ids`` has the end token if it came; ``logprobs`` has one for each id, in nats."""

    ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]


class VllmClient:
    """Blocking calls to a server. Threads may share it."""

    def __init__(self, endpoint: VllmEndpoint) -> None:
        """Connect nothing yet."""
        self.endpoint = endpoint
        self._http = httpx2.Client(**endpoint.http)

    def served(self) -> list[Served]:
        """Return what the server serves. Raises VllmError."""
        listed = read_list(read_json(self.call("GET", MODELS)), "data")
        return [_served(each) for each in listed]

    def load(self, name: str, directory: Path) -> None:
        """Load an adapter, which the server reads from the same path. Nothing happens if it is loaded.

        Raises VllmError.
        """
        body = {"lora_name": name, "lora_path": str(directory.absolute())}
        self.call("POST", _LOAD, body, done="already been loaded")

    def unload(self, name: str) -> None:
        """Unload an adapter. Nothing happens if the server has none of that name. Raises VllmError."""
        self.call("POST", _UNLOAD, {"lora_name": name}, done="cannot be found")

    def complete(self, asked: Asked) -> list[Completed]:
        """Return the answers, in order. Raises VllmError."""
        reply = read_json(self.call("POST", COMPLETIONS, asked.body))
        if reply.get("model") != asked.model:
            raise VllmGarbage(f"{reply.get('model')!r} replied instead of {asked.model}")
        choices = sorted(read_list(reply, "choices"), key=lambda choice: _int(choice, "index"))
        if [choice["index"] for choice in choices] != list(range(asked.answers)):
            raise VllmGarbage(f"{len(choices)} responses instead of {asked.answers}")
        return [_completed(choice, asked) for choice in choices]

    def close(self) -> None:
        """Disconnect."""
        self._http.close()

    def call(self, method: str, path: str, body: object = None, done: str | None = None) -> httpx2.Response:
        """Call the server, with pauses between attempts.

        Args:
            method: HTTP method.
            path: Path below the base URL.
            body: JSON body.
            done: Text of the refusal that means that the work is done, as by an earlier attempt whose reply was lost.

        Raises:
            VllmRefused: On status 4xx other than 429.
            VllmUnreachable: If every attempt failed.
        """
        endpoint, reason = self.endpoint, ""
        pause = endpoint.first_pause_s
        for attempt in range(endpoint.attempts):
            if attempt:
                time.sleep(pause)
                pause *= 2
            try:
                reply = self._http.request(method, path, json=body)
            except httpx2.HTTPError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if reply.is_success or (done is not None and reply.is_client_error and done in reply.text):
                return reply
            reason = f"{reply.status_code}: {said(reply.text)}"
            if reply.status_code < 500 and reply.status_code != 429:
                raise refusal(endpoint, path, reply.status_code, reply.text)
        raise VllmUnreachable(f"{endpoint.address}: {path}: {reason}")


def refusal(endpoint: VllmEndpoint, path: str, status: int, text: str) -> VllmRefused:
    """Return the error for a reply of status 4xx."""
    reason = f"{endpoint.address}: {path}: {status}: {said(text)}"
    if status == 404 and path.endswith("_lora_adapter") and "adapter" not in text:
        return VllmRefused(f"{reason} (is VLLM_ALLOW_RUNTIME_LORA_UPDATING set, and --enable-lora given?)")
    return VllmUnknownModel(reason) if status == 404 and path == COMPLETIONS else VllmRefused(reason)


def read_tokens(choice: Mapping[str, Any], prompt: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return the token ids and log-probabilities of a choice, or of a part of one. Raises VllmGarbage."""
    read = choice.get("prompt_token_ids")
    if read is not None and list(read) != list(prompt):
        raise VllmGarbage("the server read another prompt than the one it was sent")
    ids = read_list(choice, "token_ids")
    logprobs = read_list(choice.get("logprobs") or {}, "token_logprobs")
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise VllmGarbage("token_ids: not ids of tokens")
    if len(logprobs) != len(ids) or not all(_is_logprob(each) for each in logprobs):
        raise VllmGarbage("a response without a log-probability for each of its tokens")
    return list(ids), [float(each) for each in logprobs]


def checked(ids: list[int], logprobs: list[float], finish: object, asked: Asked) -> Completed:
    """Return a whole answer. Raises VllmGarbage if it ended in another way than it was asked to."""
    if not 1 <= len(ids) <= asked.max_new_tokens:
        raise VllmGarbage(f"a response of {len(ids)} tokens, not 1 to {asked.max_new_tokens}")
    if finish == "stop" and ids[-1] in asked.ends:
        return Completed(ids, logprobs, "stop")
    if finish == "length" and len(ids) == asked.max_new_tokens:
        return Completed(ids, logprobs, "length")
    raise VllmGarbage(f"a response of {len(ids)} tokens with finish_reason {finish!r}")


def read_json(reply: httpx2.Response) -> Mapping[str, Any]:
    """Return the object that a reply holds. Raises VllmGarbage."""
    try:
        found = reply.json()
    except ValueError as error:
        raise VllmGarbage(f"{reply.url.path}: not JSON") from error
    if not isinstance(found, dict):
        raise VllmGarbage(f"{reply.url.path}: not an object")
    return found


def read_list(holder: Any, key: str) -> Sequence[Any]:
    """Return the list under ``key``. Raises VllmGarbage."""
    found = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(found, list):
        raise VllmGarbage(f"{key}: not a list")
    return found


def _served(entry: Any) -> Served:
    name = entry.get("id") if isinstance(entry, Mapping) else None
    if not isinstance(name, str):
        raise VllmGarbage("data: a model without a name")
    length = entry.get("max_model_len")
    return Served(name, entry.get("parent") is not None, length if isinstance(length, int) else None)


def _completed(choice: Mapping[str, Any], asked: Asked) -> Completed:
    ids, logprobs = read_tokens(choice, asked.prompt)
    return checked(ids, logprobs, choice.get("finish_reason"), asked)


def _int(holder: Any, key: str) -> int:
    found = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(found, int):
        raise VllmGarbage(f"{key}: not a number")
    return found


def _is_logprob(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value <= _MOST_LOGPROB
