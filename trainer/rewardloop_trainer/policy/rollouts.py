"""Responses that a policy samples, with the log-probabilities that KL and policy gradients need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewardloop.formats.text import Encoder
from rewardloop_sampling.running_batch import sample
from rewardloop_sampling.sampling import Finish, SampleRequest, end_ids
from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.data.preferences import Prompt

_ROWS = 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are sampled, at top_p 1 and without top_k.

    Attributes:
        responses: Responses to each prompt.
        max_new_tokens: Most tokens of a response, end token included.
        seed: The same seed gives the same responses.
        temperature: What the logits are divided by.
    """

    responses: int
    max_new_tokens: int
    seed: int
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response.

    Attributes:
        text: The decoded response, without its end token.
        sequence: The tokens that were sampled, after the prompt's; encoding the text may give other tokens.
        logprobs: Log-probability of each sampled token at the temperature it was sampled with, in nats.
        finish: "stop" if it ended with an end token, "length" if it was cut off.
    """

    text: str
    sequence: Completion
    logprobs: tuple[float, ...]
    finish: Finish

    @property
    def logprob(self) -> float:
        """Log-probability of the whole response, in nats."""
        return sum(self.logprobs)


def roll_out(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    places: Sequence[int] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> list[list[Rollout]]:
    """Sample responses to each prompt.

    Args:
        model: A causal LM in evaluation mode.
        encoder: The model's tokenizer and text layout.
        prompts: Prompts that leave room for the new tokens; see `fitting_prompts`.
        sampling: How many responses, how long, with which seed and temperature.
        places: A number for each prompt that, with the seed, determines its random numbers; by default its index.
        on_batch: Called before each batch; may raise to stop.

    Returns:
        The responses to each prompt, in the order of the prompts.

    Raises:
        ValueError: If a prompt leaves no room for the new tokens.
    """
    prompt_ids = [encoder.prompt_ids(prompt) for prompt in prompts]
    if any(len(ids) + sampling.max_new_tokens > encoder.max_length for ids in prompt_ids):
        raise ValueError("a prompt leaves no room for its response")
    found: list[list[Rollout]] = [[] for _ in prompts]
    # Prompts of one length need no padding. Random numbers belong to a prompt's place, so the order changes nothing.
    order = sorted(range(len(prompts)), key=lambda i: len(prompt_ids[i]))
    per_batch = max(1, _ROWS // sampling.responses)
    ends = end_ids(model, encoder.format.ends)
    for start in range(0, len(order), per_batch):
        on_batch()
        batch = order[start : start + per_batch]
        requests = [
            SampleRequest(
                prompt_ids[i],
                sampling.responses,
                temperature=sampling.temperature,
                seed=sampling.seed * 1_000_003 + (places[i] if places else i),
                max_new_tokens=sampling.max_new_tokens,
            )
            for i in batch
        ]
        groups = sample(model, requests, end_ids=ends, pad_id=encoder.format.pad)
        for i, group in zip(batch, groups, strict=True):
            for sampled in group:
                said = sampled.ids[:-1] if sampled.finish == "stop" else sampled.ids
                sequence = Completion((*prompt_ids[i], *sampled.ids), len(prompt_ids[i]))
                found[i].append(Rollout(encoder.decode(said), sequence, tuple(sampled.logprobs), sampled.finish))
    return found


def fitting_prompts(encoder: Encoder, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Prompt]:
    """The prompts that leave room for ``max_new_tokens`` tokens within the encoder's maximum length.

    A prompt that the policy's text format has no form for is left out too.
    """
    room = encoder.max_length - max_new_tokens
    return [p for p, ids in zip(prompts, encoder.prompts(prompts), strict=True) if ids is not None and len(ids) <= room]
