"""A chat model on this machine: a Hugging Face directory or hub id, computed by torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from rewardloop.formats.text import RefusedConversation
from rewardloop_trainer.data.completions import encode_completions, sequence_logprobs
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.chat import Reply, Request
from rewardloop_trainer.judging.judge import JudgeRefused
from rewardloop_trainer.policy.rollouts import Sampling, roll_out
from rewardloop_trainer.policy.start import start_from_base

_TOKEN_BUDGET = 8192


class LocalChat:
    """A `Chat` whose replies are sampled here, one at a time."""

    def __init__(self, base: str, max_length: int = 0) -> None:
        """Load the model.

        Args:
            base: Hugging Face directory or hub id.
            max_length: Most tokens of conversation and reply; 0: as many as the model reads.

        Raises:
            UnusableBase: If it is no causal language model.
        """
        self._start = start_from_base(base, max_length)
        self._model = self._start.load()
        self._name = f"{Path(base).name}@{self._start.digest[:12]}" if self._start.digest else Path(base).name
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    def complete(self, request: Request) -> Reply:
        """Sample a reply. Raises JudgeRefused if the conversation leaves no room for it."""
        self._check(request.messages, request.max_tokens)
        sampling = Sampling(1, request.max_tokens, request.seed, request.temperature)
        with self._lock:
            ((said,),) = roll_out(self._model, self._start.encoder, [request.messages], sampling)
        asked = said.sequence.start
        return Reply(said.text, self._name, asked, len(said.sequence.ids) - asked, said.finish == "length")

    def _check(self, messages: Prompt, new_tokens: int) -> None:
        encoder = self._start.encoder
        try:
            ids = encoder.prompt_ids(messages)
        except RefusedConversation as error:
            raise JudgeRefused(f"{self._name}: {error}") from error
        if len(ids) + new_tokens > encoder.max_length:
            raise JudgeRefused(f"{self._name}: a conversation of {len(ids)} tokens leaves no room for {new_tokens}")


class LocalChooser(LocalChat):
    """A `Chooser`: it compares the probabilities of the replies, so that a verdict takes one forward pass."""

    def choose(self, messages: Prompt, replies: Sequence[str]) -> list[float]:
        """Return the probability of each reply, its end included, given that it is one of them.

        Raises:
            JudgeRefused: If the conversation with a reply is longer than the model reads.
        """
        self._check(messages, 1)
        encoder = self._start.encoder
        rows = encode_completions(encoder, [(messages, reply) for reply in replies])
        if any(row is None for row in rows):
            raise JudgeRefused(f"{self._name}: the conversation is longer than the model reads")
        kept = [row for row in rows if row is not None]
        with self._lock, torch.inference_mode():
            logprobs = sequence_logprobs(self._model, kept, encoder.format.pad, _TOKEN_BUDGET, 1.0).double()
        return [float(chance) for chance in torch.softmax(logprobs, 0)]
