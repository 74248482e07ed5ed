"""A policy version in memory: its model, tokenizer and text format, which turn a conversation into answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from transformers.utils import logging as transformers_logging

from rewardloop.formats.store import Manifest
from rewardloop.formats.text import Encoder, Turn
from rewardloop_policy.policy_text import Answer, PolicyText, read_encoder
from rewardloop_policy.speech import Speech
from rewardloop_sampling.decoding import fixed_layers
from rewardloop_sampling.generation_rules import GenerationRules
from rewardloop_sampling.loading import load_served, most_positions
from rewardloop_sampling.running_batch import RunningBatch
from rewardloop_sampling.sampling import SampleRequest, Task, end_ids
from rewardloop_server.calls.errors import NotLoadable, told

log = structlog.get_logger()

_WARM_UP_TOKENS = 2


class PolicyModel(PolicyText):
    """One warm version. One thread at a time samples from it; any thread may use the rest.

    Attributes:
        token_s: Seconds that a token took when the version was warmed. In a large batch it takes less.
    """

    def __init__(self, manifest: Manifest, model: Any, encoder: Encoder, rules: GenerationRules) -> None:
        super().__init__(manifest, encoder)
        self.token_s = 0.0
        self._model: Any = model
        self._rules = rules

    def batch(self) -> RunningBatch:
        """Return an empty batch. Raises RuntimeError if the version is closed."""
        if self._model is None:
            raise RuntimeError("the version is closed")
        rules = self._rules
        return RunningBatch(self._model, end_ids=rules.end_ids, pad_id=self.encoder.format.pad, rules=rules)

    def task(self, request: SampleRequest, speech: Speech, is_abandoned: Callable[[], bool]) -> Task:
        """Return a request that can join a batch.

        Args:
            request: What to sample.
            speech: Where the texts stop, and who hears them while they are sampled.
            is_abandoned: See `Task`.
        """

        saying = [self.saying() for _ in range(request.candidates)]

        def is_said(candidate: int, ids: Sequence[int]) -> bool:
            return speech.hear(candidate, saying[candidate](ids))

        return Task(request, is_abandoned, is_said if speech.stop or speech.on_text else None)

    def answers(self, task: Task, speech: Speech) -> list[Answer]:
        """Return the candidates of a request that is done."""
        return [self.read(sampled, speech, candidate) for candidate, sampled in enumerate(task.sampled)]

    def answer(self, requests: Sequence[SampleRequest], speech: Speech | None = None) -> list[list[Answer]]:
        """Return the candidates of each request, which are sampled together and stop as ``speech`` says.

        Raises:
            FloatingPointError: The logits are NaN. And whatever torch raises.
        """
        batch, speech = self.batch(), speech or Speech()
        tasks = [self.task(request, speech, lambda: False) for request in requests]
        batch.join(tasks)
        batch.finish()
        return [self.answers(task, speech) for task in tasks]

    def close(self) -> None:
        """Free the weights."""
        self._model = None


def choose_device(device: str) -> torch.device:
    """Return the device. "auto" is CUDA if there is a GPU. Raises SystemExit if CUDA is asked for and absent."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("rewardloop policy-worker: device cuda was asked for, but torch sees no GPU")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def load_policy_model(manifest: Manifest, directory: Path, *, device: torch.device) -> PolicyModel:
    """Load and warm a version. Raises NotLoadable."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = load_served(directory, device)
        encoder = read_encoder(manifest, directory, most_positions(model.config))
        rules = GenerationRules.of(model, end_ids(model, encoder.format.ends))
        policy = PolicyModel(manifest, model, encoder, rules)
        settings = SampleRequest((), candidates=2, max_new_tokens=_WARM_UP_TOKENS)
        asked = [policy.request((Turn("user", text),), settings)[0] for text in ("Hello", "Hello, how are you?")]
        policy.answer(asked)  # the first one is slow and not timed
        started = time.monotonic()
        policy.answer(asked)
        tokens = sum(len(each.prompt) + each.candidates * each.max_new_tokens for each in asked)
        policy.token_s = (time.monotonic() - started) / tokens
    except Exception as error:  # transformers, tokenizers and torch raise many kinds for a broken version
        raise NotLoadable(f"policy {manifest.version} does not load or run: {told(error)}") from error
    if fixed := fixed_layers(model.config):
        log.warning("requests wait until this policy's batch is done", version=manifest.version, layers=sorted(fixed))
    return policy
