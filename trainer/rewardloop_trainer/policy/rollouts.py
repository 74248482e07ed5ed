"""What a policy says to prompts, with the log-probabilities that KL and policy gradients need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewardloop.formats.text import Encoder
from rewardloop_sampling.sampling import Finish, SampleRequest, end_ids, sample
from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.data.preferences import Prompt

_ROWS = 64


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer. ``sequence``: the very tokens that were sampled, which its text may not encode back to.

    ``logprobs``: of each of them, at the temperature that they were sampled with, in nats.
    """

    text: str
    sequence: Completion
    logprobs: tuple[float, ...]
    finish: Finish

    @property
    def logprob(self) -> float:
        """Summed over the tokens."""
        return sum(self.logprobs)


def roll_out(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    *,
    responses: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    places: Sequence[int] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> list[list[Rollout]]:
    """``responses`` answers to each prompt, at top_p 1; the same seed gives the same answers.

    ``model``: a causal LM in evaluation mode. ``places``: what the prompts' random numbers go with, beside the seed; by
    default their places in ``prompts``. ``on_batch`` is called before each batch, and may raise to stop.
    Raises ValueError for a prompt that leaves no room for the new tokens: see `fitting_prompts`.
    """
    prompt_ids = [encoder.prompt_ids(prompt) for prompt in prompts]
    if any(len(ids) + max_new_tokens > encoder.max_length for ids in prompt_ids):
        raise ValueError("a prompt does not fit beside its answer")
    found: list[list[Rollout]] = [[] for _ in prompts]
    # Prompts of one length need no padding; seeds go with the prompt's place, so order changes nothing.
    order = sorted(range(len(prompts)), key=lambda i: len(prompt_ids[i]))
    per_batch = max(1, _ROWS // responses)
    ends = end_ids(model, encoder.format.response.suffix)
    for start in range(0, len(order), per_batch):
        on_batch()
        batch = order[start : start + per_batch]
        requests = [
            SampleRequest(
                prompt_ids[i],
                responses,
                temperature=temperature,
                seed=seed * 1_000_003 + (places[i] if places else i),
                max_new_tokens=max_new_tokens,
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
    """Those that leave room for an answer."""
    return [p for p in prompts if len(encoder.prompt_ids(p)) + max_new_tokens <= encoder.max_length]
