"""Samples responses on a vLLM server, which is given the learning policy's adapters; for `rewardloop[vllm]`.

The server must be vLLM 0.10.2 or later, which returns token ids. Start it with the base that the policy starts from, as
a Hugging Face directory:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank RANK \\
        --max-loras 2 --logprobs-mode processed_logprobs

The server reads adapters from the path that the trainer writes them to, so both need the same file system. Without the
logprobs mode vLLM reports probabilities from before the temperature, which are right only at temperature 1. A policy
whose full weights learn is refused, because a server would have to load them anew for each step. vLLM's kernels round
differently from torch's, so the log-probability of a token is near the trainer's but not equal: every step compares the
two (`online.agreement`) and corrects the difference by truncated importance weights.
"""

from __future__ import annotations

import math
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import structlog
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from rewardloop.formats.text import Encoder
from rewardloop.process.socket_owner import is_loopback
from rewardloop_sampling.sampling import end_ids
from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.policy.online.sampler import Said, SampleCall, SamplerAway, SamplerError
from rewardloop_trainer.policy.rollouts import Rollout, Sampling

log = structlog.get_logger()

_POLL_S = 0.2
_MOST_SEED = 2**63
# A probability of 1 may be reported as slightly more, by rounding.
_MOST_LOGPROB = 1e-3


class VllmError(SamplerError):
    """Base of the errors of sampling on a server.

    VllmError
    ├── VllmUnreachable   no reply in time, or status 5xx or 429, after every attempt; the call may succeed later
    ├── VllmRefused       another status 4xx; the same call would fail again
    └── VllmGarbage       a reply that does not answer the request
    """


class VllmUnreachable(VllmError, SamplerAway):
    """Raised when every attempt of a call failed for want of a usable reply."""


class VllmRefused(VllmError):
    """Raised when the server rejects a call."""


class VllmGarbage(VllmError):
    """Raised when a reply does not answer the request."""


@dataclass(frozen=True, slots=True)
class VllmEndpoint:
    """How to reach a vLLM server.

    Attributes:
        url: Base URL.
        name: Name of this trainer on the server. Adapters that an earlier trainer of the same name left are unloaded.
        api_key: Sent as a bearer token unless it is empty.
        parallel: Prompts that are sampled at once.
        timeout_s: Deadline of one reply, in seconds.
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
        parts = urlsplit(self.url)
        return f"vllm at {parts.hostname}" + (f":{parts.port}" if parts.port else "")


class VllmSampler:
    """A `Sampler` that loads the policy's adapters onto the server under a name for each step."""

    def __init__(
        self, server: VllmEndpoint, model: Any, encoder: Encoder, directory: Path, *, max_age_steps: int = 0
    ) -> None:
        """Connect nothing yet.

        Args:
            server: How to reach the server.
            model: The causal LM that `train_online` is given, in which the adapters learn.
            encoder: The model's tokenizer and text layout.
            directory: Where adapters are written for the server to read.
            max_age_steps: Most steps by which the adapter that samples may be older than the weights that learn.
        """
        self._server, self._model, self._encoder, self._directory = server, model, encoder, directory
        self._ends = end_ids(model, encoder.format.ends)
        # The random part: a restarted trainer repeats steps, with other weights than those that it loaded before.
        self._prefix, self._run = f"{server.name}.", f"{server.name}.{secrets.token_hex(4)}"
        self._max_age = max_age_steps
        self._loaded: str | None = None
        headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
        limits = httpx2.Limits(max_connections=server.parallel)
        # A proxy of the environment cannot reach what listens on this machine's loopback.
        uses_proxy = not is_loopback(urlsplit(server.url).hostname or "")
        self._http = httpx2.Client(
            base_url=server.url, headers=headers, timeout=server.timeout_s, limits=limits, trust_env=uses_proxy
        )

    @property
    def name(self) -> str:
        return self._server.address

    def sample(self, call: SampleCall, on_batch: Callable[[], None]) -> Said:
        """Sample the responses of one step.

        Raises:
            VllmError: If the server does not give them.
            ValueError: If a prompt leaves no room for its response, or the policy has no adapters.
        """
        prompts = [tuple(self._encoder.prompt_ids(prompt)) for prompt in call.prompts]
        if any(len(ids) + call.sampling.max_new_tokens > self._encoder.max_length for ids in prompts):
            raise ValueError("a prompt leaves no room for its response")
        on_batch()
        adapter = self._adapter_for(call.step)
        pool = ThreadPoolExecutor(self._server.parallel, thread_name_prefix="vllm")
        try:
            pending = {
                pool.submit(self._complete, adapter, ids, call.sampling, call.sampling.seed * 1_000_003 + place): i
                for i, (ids, place) in enumerate(zip(prompts, call.places, strict=True))
            }
            groups: dict[int, list[Rollout]] = {}
            while pending:
                done, _ = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for each in done:
                    groups[pending.pop(each)] = each.result()
                on_batch()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return Said([groups[i] for i in range(len(prompts))], step_of(adapter))

    def close(self) -> None:
        """Unload the adapter from the server and disconnect. Raises VllmError."""
        if self._loaded is not None:
            self._unload(self._loaded)
            self._loaded = None
        self._http.close()

    def abandon(self) -> None:
        """Disconnect after a failure; the adapter that stays on the server is unloaded by the next run of that name."""
        self._http.close()

    def _adapter_for(self, step: int) -> str:
        """Name of an adapter on the server that is recent enough for this step; loads the current one if none is."""
        if self._loaded is not None and 0 <= step - step_of(self._loaded) <= self._max_age:
            return self._loaded
        if self._loaded is None:
            self._unload_leftovers()
        name = f"{self._run}.step{step}"
        path = (self._directory / name).absolute()
        save_adapter(self._model, path)
        body = {"lora_name": name, "lora_path": str(path)}
        self._call("POST", "/v1/load_lora_adapter", body, done="has already been loaded")
        before, self._loaded = self._loaded, name
        if before is not None:
            self._unload(before)
        return name

    def _unload(self, name: str) -> None:
        self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, done="cannot be found")
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def _unload_leftovers(self) -> None:
        listed = _json(self._call("GET", "/v1/models"))
        names = [each.get("id") for each in _list(listed, "data")]
        for name in names:
            if isinstance(name, str) and name.startswith(self._prefix):
                log.warning("unloading an adapter that an earlier run left on the server", adapter=name)
                self._unload(name)

    def _complete(self, adapter: str, prompt: tuple[int, ...], sampling: Sampling, seed: int) -> list[Rollout]:
        body = {
            "model": adapter,
            "prompt": list(prompt),
            "n": sampling.responses,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            # Without these the server would use the values of the base's generation config.
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed % _MOST_SEED,
            "stop_token_ids": sorted(self._ends),
            "add_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,
        }
        reply = _json(self._call("POST", "/v1/completions", body))
        if reply.get("model") != adapter:
            raise VllmGarbage(f"{reply.get('model')!r} replied instead of {adapter}")
        choices = sorted(_list(reply, "choices"), key=lambda choice: _int(choice, "index"))
        if [choice["index"] for choice in choices] != list(range(sampling.responses)):
            raise VllmGarbage(f"{len(choices)} responses instead of {sampling.responses}")
        return [self._rollout(prompt, choice, sampling.max_new_tokens) for choice in choices]

    def _rollout(self, prompt: tuple[int, ...], choice: Mapping[str, Any], max_new_tokens: int) -> Rollout:
        read = choice.get("prompt_token_ids")
        if read is not None and tuple(read) != prompt:
            raise VllmGarbage("the server read another prompt than the one it was sent")
        ids = _list(choice, "token_ids")
        logprobs = _list(choice.get("logprobs") or {}, "token_logprobs")
        finish = choice.get("finish_reason")
        if not all(isinstance(i, int) and i >= 0 for i in ids) or not 1 <= len(ids) <= max_new_tokens:
            raise VllmGarbage(f"a response of {len(ids)} tokens, not 1 to {max_new_tokens}")
        if len(logprobs) != len(ids) or not all(_is_logprob(each) for each in logprobs):
            raise VllmGarbage("a response without a log-probability for each of its tokens")
        if finish == "stop" and ids[-1] in self._ends:
            said = ids[:-1]
        elif finish == "length" and len(ids) == max_new_tokens:
            said = ids
        else:
            raise VllmGarbage(f"a response of {len(ids)} tokens with finish_reason {finish!r}")
        text = self._encoder.decode(said)
        return Rollout(text, Completion((*prompt, *ids), len(prompt)), tuple(map(float, logprobs)), finish)

    def _call(self, method: str, path: str, body: object = None, done: str | None = None) -> httpx2.Response:
        """Call the server, with pauses between attempts.

        Args:
            method: HTTP method.
            path: Path below the base URL.
            body: JSON body.
            done: Text of the refusal that means that an earlier attempt, whose reply was lost, has done the work.

        Raises:
            VllmRefused: On status 4xx other than 429.
            VllmUnreachable: If every attempt failed.
        """
        pause, reason = self._server.first_pause_s, ""
        for attempt in range(self._server.attempts):
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
            reason = f"{reply.status_code}: {_said(reply)}"
            if reply.status_code == 404 and path.endswith("_lora_adapter") and "adapter" not in reply.text:
                reason += " (is VLLM_ALLOW_RUNTIME_LORA_UPDATING set, and --enable-lora given?)"
            if reply.status_code < 500 and reply.status_code != 429:
                raise VllmRefused(f"{self.name}: {path}: {reason}")
        raise VllmUnreachable(f"{self.name}: {path}: {reason}")


def step_of(adapter: str) -> int:
    """The step whose weights an adapter of this sampler holds, read off its name."""
    found = re.fullmatch(r".*\.step(\d+)", adapter)
    if found is None:
        raise VllmGarbage(f"{adapter!r} is not the name of a trainer's adapter")
    return int(found[1])


def save_adapter(model: Any, directory: Path) -> None:
    """Write the adapters of ``model`` in PEFT's layout, whole or not at all.

    Args:
        model: The causal LM itself, with adapters on its linear layers.
        directory: The directory to write; one of that name is replaced.

    Raises:
        ValueError: If the model has no adapters, so that its full weights learn.
    """
    configs = getattr(model, "peft_config", None)
    if not configs:
        raise ValueError("vLLM is given adapters only, but the full weights of this policy learn: set weights to lora")
    adapter = next(iter(configs))
    weights = get_peft_model_state_dict(model, adapter_name=adapter)
    named = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in weights.items()}

    def write(target: Path) -> None:
        save_file(named, target / "adapter_model.safetensors", metadata={"format": "pt"})
        configs[adapter].save_pretrained(target)

    write_whole(directory, write)


def _json(reply: httpx2.Response) -> Mapping[str, Any]:
    try:
        found = reply.json()
    except ValueError as error:
        raise VllmGarbage(f"{reply.url.path}: not JSON") from error
    if not isinstance(found, dict):
        raise VllmGarbage(f"{reply.url.path}: not an object")
    return found


def _list(holder: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(found, list):
        raise VllmGarbage(f"{key}: not a list")
    return found


def _int(holder: Any, key: str) -> int:
    found = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(found, int):
        raise VllmGarbage(f"{key}: not a number")
    return found


def _is_logprob(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value <= _MOST_LOGPROB


def _said(reply: httpx2.Response) -> str:
    """The text of an error reply, in one line."""
    return " ".join(reply.text.split())[:300]
