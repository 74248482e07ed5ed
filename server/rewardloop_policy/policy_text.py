"""What a policy version reads and writes: conversations as prompts of token ids, and sampled ids as answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from rewardloop.formats.store import Manifest
from rewardloop.formats.text import Encoder, FittedPrompt, RefusedConversation, Turn
from rewardloop.formats.text_format import read_text_format
from rewardloop_policy.growing_text import UNFINISHED, GrowingText, Pieces
from rewardloop_policy.speech import Speech
from rewardloop_sampling.sampling import Finish, Sampled, SampleRequest
from rewardloop_server.calls.errors import InvalidRequest, Violation


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


class PolicyText(ABC):
    """The text side of a version, whatever samples from it. Threads may share it.

    Attributes:
        manifest: The version's manifest.
        encoder: Its tokenizer, text format and length.
    """

    def __init__(self, manifest: Manifest, encoder: Encoder) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self._pieces = Pieces(encoder.tokenizer)
        self._least_prompt = len(encoder.prompt_ids((Turn("user", "a"),)))

    @abstractmethod
    def close(self) -> None:
        """Free what samples from it. Called once, after the last lease."""

    def longest_answer(self, conversation: Sequence[Turn], wanted: int) -> int:
        """Return how many of ``wanted`` new tokens a request gets that names no number.

        They are those that the prompt leaves of the model's length, and at least half of it.
        """
        half = max(1, self.encoder.max_length // 2)
        if wanted <= half:
            return wanted
        (prompt,) = self.encoder.prompts([conversation])
        return min(wanted, max(half, self.encoder.max_length - len(prompt or ())))

    def request(self, conversation: Sequence[Turn], settings: SampleRequest) -> tuple[SampleRequest, FittedPrompt]:
        """Return ``settings`` with the conversation as the prompt, and what of the conversation is in it.

        A prompt that does not fit beside the new tokens is shortened as `Encoder` says.

        Raises:
            InvalidRequest: The new tokens leave no room for a prompt, or the policy's text format has no form for the
                conversation.
        """
        room = self.encoder.max_length - settings.max_new_tokens
        if room < self._least_prompt:
            limit = self.encoder.max_length - self._least_prompt
            raise InvalidRequest(
                [
                    Violation(
                        "max_new_tokens",
                        f"at most {limit}, because this policy version reads {self.encoder.max_length} tokens of "
                        "prompt and answer together (--max-length of its export)",
                    )
                ]
            )
        try:
            fitted = self.encoder.fit_prompt(conversation, room)
        except RefusedConversation as error:
            raise InvalidRequest([Violation("prompt", str(error))]) from error
        return replace(settings, prompt=fitted.ids), fitted

    def saying(self) -> Callable[[Sequence[int]], str]:
        """Return what is called with the ids of one answer as they grow, before its end.

        It returns the text of the ids, without what may belong to the answer's end.
        """
        text, held = GrowingText(self._pieces), self.encoder.format.held
        return lambda ids: text.upto(ids, max(0, len(ids) - held))

    def read(self, sampled: Sampled, speech: Speech, candidate: int) -> Answer:
        """Return a candidate as the caller gets it, up to the first stop text."""
        ids = sampled.ids
        if sampled.finish == "stop":
            ids = self.encoder.format.answer(ids)
        text, is_stopped = speech.whole(candidate, self.encoder.decode(ids))
        tokens = self._tokens(ids, sampled.logprobs, len(text)) if speech.wants_tokens else ()
        finish: Finish = "stop" if is_stopped else sampled.finish
        return Answer(text, sampled.logprob, len(sampled.ids), finish, tokens)

    def _tokens(self, ids: Sequence[int], logprobs: Sequence[float], length: int) -> tuple[tuple[str, float], ...]:
        """Return what each token adds to a text, for those that begin within its first ``length`` characters."""
        found, before, growing = [], 0, GrowingText(self._pieces)
        for i, logprob in enumerate(logprobs[: len(ids)]):
            text = growing.upto(ids, i + 1)
            end = len(text) if i + 1 == len(ids) else len(text.rstrip(UNFINISHED))
            if before >= length:
                break
            found.append((text[before : min(end, length)], logprob))
            before = max(before, end)
        return tuple(found)


def read_encoder(manifest: Manifest, directory: Path, *bounds: int | None) -> Encoder:
    """Return a version's encoder, whose length is the least of the manifest's and the other bounds, in tokens."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    text_format = read_text_format(manifest.text_format)
    return Encoder(tokenizer, text_format, min([manifest.max_length, *filter(None, bounds)]))
