"""The frozen policy that a learning one is held to, and how far the two are apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.completions import sequence_logprobs
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.policy.rollouts import Sampling, fitting_prompts, roll_out
from rewardloop_trainer.policy.settings import PolicySettings

_MEASURED_PROMPTS = 64
_MEASURED_RESPONSES = 2


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference other than the policy that training starts from.

    Attributes:
        name: What identifies its weights. A checkpoint of a run with another reference is not taken up.
        load: Loads it as a causal LM in float32. It has the vocabulary of the policy that learns.
    """

    name: str
    load: Callable[[], Any]


def sampled_kl(
    policy: Any,
    reference: Any,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    settings: PolicySettings,
    on_batch: Callable[[], None] = lambda: None,
) -> float | None:
    """Estimate KL(policy || reference) in nats per response, from responses that the policy samples.

    The estimate is the mean log ratio of at most 64 prompts' responses (k1), which is unbiased.

    Args:
        policy: A causal LM in evaluation mode.
        reference: A causal LM in evaluation mode.
        encoder: Tokenizer, text format and maximum length of both.
        prompts: Prompts to draw from.
        settings: The gate's length of a response, the seed and the tokens of one forward pass.
        on_batch: Called before each batch; may raise to stop.

    Returns:
        The estimate; None if no prompt leaves room for a response.
    """
    longest = min(settings.gate.max_new_tokens, encoder.max_length // 2)
    fitting = fitting_prompts(encoder, list(dict.fromkeys(prompts)), longest)
    random.Random(settings.seed).shuffle(fitting)
    if not fitting:
        return None
    sampling = Sampling(_MEASURED_RESPONSES, longest, settings.seed)
    groups = roll_out(policy, encoder, fitting[:_MEASURED_PROMPTS], sampling, on_batch=on_batch)
    said = [rollout for group in groups for rollout in group]
    rows = [rollout.sequence for rollout in said]
    by_reference = sequence_logprobs(reference, rows, encoder.format.pad, settings.micro_batch_tokens).tolist()
    return float(sum(r.logprob - other for r, other in zip(said, by_reference, strict=True)) / len(said))
