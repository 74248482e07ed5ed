"""A policy version in memory: its model, tokenizer and text format, which turn a conversation into answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from rewardloop.formats.store import Manifest
from rewardloop.formats.text import Encoder, FittedPrompt, RefusedConversation, Turn
from rewardloop.formats.text_format import read_text_format
from rewardloop_policy.speech import Speech
from rewardloop_sampling.generation_rules import GenerationRules
from rewardloop_sampling.loading import load_served, most_positions
from rewardloop_sampling.sampling import Finish, Sampled, SampleRequest, end_ids, sample
from rewardloop_server.calls.errors import InvalidRequest, NotLoadable, Violation, told

_WARM_UP_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """One candidate as the caller gets it.

    Attributes:
        text: What it says.
        logprob: The sum over the sampled tokens, in nats.
        token_count: Number of sampled tokens.
        finish: Whether it ended by itself or by a stop text ("stop"), or by its length.
        tokens: What each sampled token adds to the text, and its log-probability, in nats; without the end token.
    """

    text: str
    logprob: float
    token_count: int
    finish: Finish
    tokens: tuple[tuple[str, float], ...] = ()


class PolicyModel:
    """One warm version. `answer` is for one thread at a time; any thread may use the rest.

    Attributes:
        manifest: The version's manifest.
        token_s: Seconds that a token took when the version was warmed. In a large batch it takes less.
    """

    def __init__(self, manifest: Manifest, model: Any, encoder: Encoder, rules: GenerationRules) -> None:
        self.manifest = manifest
        self.token_s = 0.0
        self._model: Any = model
        self._encoder = encoder
        self._rules = rules
        self._least_prompt = len(encoder.prompt_ids((Turn("user", "a"),)))

    def longest_answer(self, conversation: Sequence[Turn], wanted: int) -> int:
        """Return how many of ``wanted`` new tokens a request gets that names no number.

        They are those that the prompt leaves of the model's length, and at least half of it.
        """
        half = max(1, self._encoder.max_length // 2)
        if wanted <= half:
            return wanted
        (prompt,) = self._encoder.prompts([conversation])
        return min(wanted, max(half, self._encoder.max_length - len(prompt or ())))

    def request(self, conversation: Sequence[Turn], settings: SampleRequest) -> tuple[SampleRequest, FittedPrompt]:
        """Return ``settings`` with the conversation as the prompt, and what of the conversation is in it.

        A prompt that does not fit beside the new tokens is shortened as `Encoder` says.

        Raises:
            InvalidRequest: The new tokens leave no room for a prompt, or the policy's text format has no form for the
                conversation.
        """
        room = self._encoder.max_length - settings.max_new_tokens
        if room < self._least_prompt:
            limit = self._encoder.max_length - self._least_prompt
            raise InvalidRequest(
                [
                    Violation(
                        "max_new_tokens",
                        f"at most {limit}, because this policy version reads {self._encoder.max_length} tokens of "
                        "prompt and answer together (--max-length of its export)",
                    )
                ]
            )
        try:
            fitted = self._encoder.fit_prompt(conversation, room)
        except RefusedConversation as error:
            raise InvalidRequest([Violation("prompt", str(error))]) from error
        return replace(settings, prompt=fitted.ids), fitted

    def answer(
        self,
        requests: Sequence[SampleRequest],
        is_abandoned: Callable[[int], bool] = lambda request: False,
        speeches: Sequence[Speech] | None = None,
    ) -> list[list[Answer]]:
        """Return the candidates of each request, as `sample` does.

        Args:
            requests: What to answer.
            is_abandoned: See `sample`.
            speeches: Where the texts of each request stop, and who hears them while they are sampled.

        Raises:
            FloatingPointError: The logits are NaN. And whatever torch raises.
        """
        rules = self._rules
        pad = self._encoder.format.pad
        speeches = speeches or [Speech() for _ in requests]
        needs_text = any(speech.stop or speech.on_text for speech in speeches)

        def is_said(request: int, candidate: int, ids: Sequence[int]) -> bool:
            speech = speeches[request]
            if not speech.stop and speech.on_text is None:
                return False
            return speech.hear(candidate, self._encoder.decode(ids[: len(ids) - self._encoder.format.held]))

        groups = sample(
            self._model,
            requests,
            end_ids=rules.end_ids,
            pad_id=pad,
            rules=rules,
            is_abandoned=is_abandoned,
            is_said=is_said if needs_text else None,
        )
        return [
            [self._read(sampled, speech, candidate) for candidate, sampled in enumerate(group)]
            for speech, group in zip(speeches, groups, strict=True)
        ]

    def close(self) -> None:
        """Free the weights."""
        self._model = None

    def _read(self, sampled: Sampled, speech: Speech, candidate: int) -> Answer:
        ids = sampled.ids
        if sampled.finish == "stop":
            ids = self._encoder.format.answer(ids)
        text, is_stopped = speech.whole(candidate, self._encoder.decode(ids))
        tokens = self._tokens(ids, sampled.logprobs, len(text)) if speech.wants_tokens else ()
        finish: Finish = "stop" if is_stopped else sampled.finish
        return Answer(text, sampled.logprob, len(sampled.ids), finish, tokens)

    def _tokens(self, ids: Sequence[int], logprobs: Sequence[float], length: int) -> tuple[tuple[str, float], ...]:
        """Return what each token adds to a text, for those that begin within its first ``length`` characters."""
        found, before = [], 0
        for i, logprob in enumerate(logprobs[: len(ids)]):
            text = self._encoder.decode(ids[: i + 1])
            end = len(text) if i + 1 == len(ids) else len(text.rstrip("\ufffd"))
            if before >= length:
                break
            found.append((text[before : min(end, length)], logprob))
            before = max(before, end)
        return tuple(found)


def choose_device(device: str) -> torch.device:
    """Return the device. "auto" is CUDA if there is a GPU. Raises SystemExit if CUDA is asked for and absent."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("rewardloop policy-worker: device cuda was asked for, but torch sees no GPU")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def load_policy_model(manifest: Manifest, directory: Path, *, device: torch.device) -> PolicyModel:
    """Load and warm a version. Raises NotLoadable."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        text_format = read_text_format(manifest.text_format)
        model = load_served(directory, device)
        positions = most_positions(model.config) or manifest.max_length
        encoder = Encoder(tokenizer, text_format, min(manifest.max_length, positions))
        rules = GenerationRules.of(model, end_ids(model, text_format.ends))
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
    return policy
