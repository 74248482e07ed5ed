"""Samples responses on a vLLM server, which is given the learning policy's adapters; for `rewardloop[vllm]`.

The server must be vLLM 0.10.2 or later, which returns token ids. Start it with the base that the policy starts from, as
a Hugging Face directory:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank RANK \\
        --max-loras 2 --logprobs-mode processed_logprobs

The server reads adapters from the path that the trainer writes them to, so both need the same file system. A policy
whose full weights learn is refused, because a server would have to load them anew for each step. Several trainers may
share a server and a directory: each holds a lock as long as it lives, and only adapters whose lock is free are removed.

Without the logprobs mode vLLM reports probabilities from before the temperature, which are right only at temperature 1.
A probe finds that out before the first step. vLLM's kernels round differently from torch's, so the log-probability of a
token is near the trainer's but not equal: every step compares the two (`online.agreement`) and corrects the difference
by truncated importance weights, also if the weights that sampled are those that learn.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from rewardloop.formats.text import Encoder
from rewardloop_sampling.sampling import end_ids
from rewardloop_sampling.vllm_client import Asked, Completed, VllmClient, VllmEndpoint, VllmError, VllmUnreachable
from rewardloop_sampling.vllm_probe import PROBE_TEMPERATURE, PROBE_TOKENS, Probe
from rewardloop_trainer.data.completions import Completion, token_logprobs
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.policy.online.sampler import Said, SampleCall, SamplerAway, SamplerError
from rewardloop_trainer.policy.rollouts import Rollout, Sampling

log = structlog.get_logger()

_POLL_S = 0.2
_PROBES = 2
_LOCK = ".lock"


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
        self._run = f"{server.name}.{secrets.token_hex(4)}"
        self._lock: int | None = None
        self._max_age = max_age_steps
        self._loaded: str | None = None
        self._is_raw: bool | None = None  # None: not found out yet
        self._client = VllmClient(server)

    @property
    def name(self) -> str:
        return self._server.address

    def sample(self, call: SampleCall, on_batch: Callable[[], None]) -> Said:
        """Sample the responses of one step.

        Raises:
            SamplerAway: If the server cannot be reached.
            SamplerError: If the server does not give the responses, or reports other probabilities than it must.
            ValueError: If a prompt leaves no room for its response, or the policy has no adapters.
        """
        prompts = [tuple(self._encoder.prompt_ids(prompt)) for prompt in call.prompts]
        if any(len(ids) + call.sampling.max_new_tokens > self._encoder.max_length for ids in prompts):
            raise ValueError("a prompt leaves no room for its response")
        on_batch()
        with _translated():
            adapter = self._adapter_for(call.step)
            self._check_kind(adapter, prompts, call.sampling)
            return Said(self._responses(adapter, prompts, call, on_batch), step_of(adapter))

    def close(self) -> None:
        """Unload the adapter from the server and disconnect. Raises SamplerError."""
        with _translated():
            if self._loaded is not None:
                self._unload(self._loaded)
                self._loaded = None
        if self._lock is not None:
            (self._directory / f"{self._run}{_LOCK}").unlink(missing_ok=True)
        self.abandon()

    def abandon(self) -> None:
        """Disconnect after a failure; the adapter that stays on the server is unloaded by the next run."""
        self._client.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _responses(
        self, adapter: str, prompts: Sequence[tuple[int, ...]], call: SampleCall, on_batch: Callable[[], None]
    ) -> list[list[Rollout]]:
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
        return [groups[i] for i in range(len(prompts))]

    def _adapter_for(self, step: int) -> str:
        """Name of an adapter on the server that is recent enough for this step; loads the current one if none is."""
        if self._loaded is not None and 0 <= step - step_of(self._loaded) <= self._max_age:
            return self._loaded
        if self._loaded is None:
            self._unload_leftovers()
        name = f"{self._run}.step{step}"
        path = self._directory / name
        save_adapter(self._model, path)
        self._hold_lock()
        self._client.load(name, path)
        before, self._loaded = self._loaded, name
        if before is not None:
            self._unload(before)
        return name

    def _unload(self, name: str) -> None:
        self._client.unload(name)
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def _hold_lock(self) -> None:
        """Say that this run lives, until the process ends."""
        if self._lock is None:
            self._lock = os.open(self._directory / f"{self._run}{_LOCK}", os.O_CREAT | os.O_RDWR, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _unload_leftovers(self) -> None:
        """Unload the adapters of runs that wrote them to this directory and have ended."""
        served = [each.name for each in self._client.served()]
        for lock in sorted(self._directory.glob(f"*{_LOCK}")):
            run = lock.name.removesuffix(_LOCK)
            descriptor = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # that run lives
                continue
            else:
                for name in (each for each in served if re.fullmatch(re.escape(run) + r"\.step\d+", each)):
                    log.warning("unloading an adapter that an ended run left on the server", adapter=name)
                    self._unload(name)
                lock.unlink(missing_ok=True)
            finally:
                os.close(descriptor)

    def _check_kind(self, adapter: str, prompts: Sequence[tuple[int, ...]], sampling: Sampling) -> None:
        """Find out once which log-probabilities the server reports.

        Raises VllmOtherNumbers if they are from before a temperature that is not 1.
        """
        if self._is_raw is None and prompts:
            tokens = min(PROBE_TOKENS, sampling.max_new_tokens)
            said = [
                (ids, done)
                for ids in prompts[:_PROBES]
                for done in self._client.complete(
                    self._asked(adapter, ids, 1, tokens, PROBE_TEMPERATURE, sampling.seed)
                )
            ]
            probe = self._probe(said)
            self._is_raw = probe.is_raw
            log.info("vllm probed", server=self.name, gap_nats=round(probe.gap, 5), is_raw=probe.is_raw)
        if self._is_raw and sampling.temperature != 1.0:
            raise SamplerError(
                f"{self.name} reports log-probabilities from before the temperature, which is {sampling.temperature:g} "
                "here: start it with --logprobs-mode processed_logprobs"
            )

    @torch.no_grad()
    def _probe(self, said: Sequence[tuple[tuple[int, ...], Completed]]) -> Probe:
        rows = [Completion((*ids, *done.ids), len(ids)) for ids, done in said]
        pad = self._encoder.format.pad
        kinds = [token_logprobs(self._model, rows, pad, temperature) for temperature in (PROBE_TEMPERATURE, 1.0)]
        processed, raw = (logprobs[is_token].tolist() for logprobs, is_token in kinds)
        return Probe([each for _, done in said for each in done.logprobs], processed, raw)

    def _asked(
        self, adapter: str, prompt: tuple[int, ...], answers: int, tokens: int, temperature: float, seed: int
    ) -> Asked:
        return Asked(adapter, prompt, self._ends, answers, tokens, temperature, 1.0, seed, {})

    def _complete(self, adapter: str, prompt: tuple[int, ...], sampling: Sampling, seed: int) -> list[Rollout]:
        asked = self._asked(adapter, prompt, sampling.responses, sampling.max_new_tokens, sampling.temperature, seed)
        return [self._rollout(prompt, done) for done in self._client.complete(asked)]

    def _rollout(self, prompt: tuple[int, ...], done: Completed) -> Rollout:
        text = self._encoder.decode(done.ids[:-1] if done.finish == "stop" else done.ids)
        return Rollout(text, Completion((*prompt, *done.ids), len(prompt)), tuple(done.logprobs), done.finish)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise errors of the server as those of a sampler."""
    try:
        yield
    except VllmUnreachable as error:
        raise SamplerAway(str(error)) from error
    except VllmError as error:
        raise SamplerError(str(error)) from error


def step_of(adapter: str) -> int:
    """The step whose weights an adapter of this sampler holds, read off its name."""
    found = re.fullmatch(r".*\.step(\d+)", adapter)
    if found is None:
        raise ValueError(f"{adapter!r} is not the name of a trainer's adapter")
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
