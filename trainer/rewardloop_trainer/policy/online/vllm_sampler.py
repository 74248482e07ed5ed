"""Answers from a vLLM server that follows the learning policy by its adapters; for `rewardloop[vllm]`.

The server (vLLM 0.10.2 or later, for token ids in replies) must have been started with the base that the policy started
from, as a Hugging Face directory, and

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank RANK \\
        --max-loras 2 --logprobs-mode processed_logprobs

It reads adapters from the path that the trainer writes them to: both need the same file system. Without the logprobs
mode vLLM reports probabilities from before the temperature, which are right at temperature 1 alone. Only adapters are
followed: a server takes new full weights by a restart, or by reloading in ways of vLLM's own, and a policy whose full
weights learn is refused here. Its kernels round unlike torch's, so each token's log-probability is near the trainer's
and not equal: where that matters, learn with importance weights.
"""

from __future__ import annotations

import math
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import structlog
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from rewardloop.formats.text import Encoder
from rewardloop_client._access import is_loopback
from rewardloop_sampling.sampling import end_ids
from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.policy.online.sampler import Said, SampleCall
from rewardloop_trainer.policy.rollouts import Rollout

log = structlog.get_logger()

_POLL_S = 0.2
_MOST_SEED = 2**63
# A probability of 1 may come back a rounding above it.
_MOST_LOGPROB = 1e-3


class VllmError(RuntimeError):
    """Base of what the server can do wrong.

    VllmError
    ├── VllmUnreachable   no answer in time, or 5xx and 429, after every attempt: the same call may succeed later
    ├── VllmRefused       4xx: the same call fails again
    └── VllmGarbage       an answer that is not one to the question
    """


class VllmUnreachable(VllmError):
    """No answer, after every attempt."""


class VllmRefused(VllmError):
    """The server will not do this."""


class VllmGarbage(VllmError):
    """The answer is none to the question."""


class VllmSampler:
    """A `Sampler`: each step whose adapters are older than wanted is put onto the server under a name of its own.

    ``model``: the causal LM that `train_online` was given, in which the adapters learn. ``directory``: where adapters
    are written for the server to read. ``name``: of this trainer on the server; what an earlier one of that name left
    is unloaded. ``max_age_steps``: how many steps old an adapter may be that answers. ``parallel``: prompts asked at
    once. ``timeout_s``: for one answer. ``attempts``: of a call before it is given up.
    """

    def __init__(
        self,
        url: str,
        model: Any,
        encoder: Encoder,
        directory: Path,
        *,
        name: str = "rewardloop",
        api_key: str = "",
        max_age_steps: int = 0,
        parallel: int = 64,
        timeout_s: float = 600.0,
        attempts: int = 4,
        first_pause_s: float = 0.5,
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._ends = end_ids(model, encoder.format.response.suffix)
        self._directory = directory
        # A restarted trainer is at a step again that it had put there before, with other weights.
        self._prefix, self._run = f"{name}.", f"{name}.{secrets.token_hex(4)}"
        self._max_age = max_age_steps
        self._parallel = parallel
        self._attempts, self._first_pause_s = attempts, first_pause_s
        self._loaded: str | None = None
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx2.Limits(max_connections=parallel)
        # A proxy of the environment cannot reach what listens on this machine's loopback.
        uses_proxy = not is_loopback(urlsplit(url).hostname or "")
        self._http = httpx2.Client(
            base_url=url, headers=headers, timeout=timeout_s, limits=limits, trust_env=uses_proxy
        )

    def sample(self, call: SampleCall, on_batch: Callable[[], None]) -> Said:
        """Raises VllmError, and ValueError as `roll_out` does or where the policy has no adapters."""
        prompts = [tuple(self._encoder.prompt_ids(prompt)) for prompt in call.prompts]
        if any(len(ids) + call.max_new_tokens > self._encoder.max_length for ids in prompts):
            raise ValueError("a prompt does not fit beside its answer")
        on_batch()
        adapter = self._adapter_for(call.step)
        pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="vllm")
        try:
            pending = {
                pool.submit(self._complete, adapter, ids, call, call.seed * 1_000_003 + place): i
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
        """Take the adapter off the server. Raises VllmError."""
        if self._loaded is not None:
            self._unload(self._loaded)
            self._loaded = None
        self._http.close()

    def _adapter_for(self, step: int) -> str:
        """The name of an adapter on the server that is of this step, or no older than it may be."""
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
                log.warning("an adapter that an earlier run left is unloaded", adapter=name)
                self._unload(name)

    def _complete(self, adapter: str, prompt: tuple[int, ...], call: SampleCall, seed: int) -> list[Rollout]:
        body = {
            "model": adapter,
            "prompt": list(prompt),
            "n": call.responses,
            "max_tokens": call.max_new_tokens,
            "temperature": call.temperature,
            # Said even where they are the usual: else the server takes those of the base's generation config.
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
            raise VllmGarbage(f"asked {adapter}, {reply.get('model')!r} answered")
        choices = sorted(_list(reply, "choices"), key=lambda choice: _int(choice, "index"))
        if [choice["index"] for choice in choices] != list(range(call.responses)):
            raise VllmGarbage(f"{len(choices)} answers, not one for each of {call.responses}")
        return [self._rollout(prompt, choice, call.max_new_tokens) for choice in choices]

    def _rollout(self, prompt: tuple[int, ...], choice: Mapping[str, Any], max_new_tokens: int) -> Rollout:
        read = choice.get("prompt_token_ids")
        if read is not None and tuple(read) != prompt:
            raise VllmGarbage("the server read another prompt than it was given")
        ids = _list(choice, "token_ids")
        logprobs = _list(choice.get("logprobs") or {}, "token_logprobs")
        finish = choice.get("finish_reason")
        if not all(isinstance(i, int) and i >= 0 for i in ids) or not 1 <= len(ids) <= max_new_tokens:
            raise VllmGarbage(f"an answer of {len(ids)} tokens, not 1 to {max_new_tokens}")
        if len(logprobs) != len(ids) or not all(_is_logprob(each) for each in logprobs):
            raise VllmGarbage("an answer without a log-probability for each of its tokens")
        if finish == "stop" and ids[-1] in self._ends:
            said = ids[:-1]
        elif finish == "length" and len(ids) == max_new_tokens:
            said = ids
        else:
            raise VllmGarbage(f"an answer of {len(ids)} tokens that ended by {finish!r}")
        text = self._encoder.decode(said)
        return Rollout(text, Completion((*prompt, *ids), len(prompt)), tuple(map(float, logprobs)), finish)

    def _call(self, method: str, path: str, body: object = None, done: str | None = None) -> httpx2.Response:
        """``done``: what a refusal says when an earlier attempt, whose answer was lost, had done the work."""
        pause, reason = self._first_pause_s, ""
        for attempt in range(self._attempts):
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
                raise VllmRefused(f"{path}: {reason}")
        raise VllmUnreachable(f"{path}: {reason}")


def step_of(adapter: str) -> int:
    """The step whose weights an adapter of this sampler has."""
    found = re.fullmatch(r".*\.step(\d+)", adapter)
    if found is None:
        raise VllmGarbage(f"{adapter!r} is no adapter of a trainer")
    return int(found[1])


def save_adapter(model: Any, directory: Path) -> None:
    """Write the adapters that learn in ``model`` (the causal LM itself) as PEFT lays them out, whole or not at all.

    Raises ValueError where it has none: its full weights learn.
    """
    configs = getattr(model, "peft_config", None)
    if not configs:
        raise ValueError("vLLM follows adapters alone, and the full weights of this policy learn: set weights to lora")
    partial = directory.with_name(f".{directory.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    adapter = next(iter(configs))
    weights = get_peft_model_state_dict(model, adapter_name=adapter)
    named = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(named, partial / "adapter_model.safetensors", metadata={"format": "pt"})
    configs[adapter].save_pretrained(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


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
    """What an error's body says, in one line."""
    return " ".join(reply.text.split())[:300]
