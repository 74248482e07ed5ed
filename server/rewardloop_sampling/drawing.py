"""Draws the next token of each row, by the inverse of the CDF of its distribution.

Nothing here waits for the device, so that a step waits for it once, for the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from rewardloop_sampling.generation_rules import GenerationRules


@dataclass(frozen=True, slots=True)
class RowSettings:
    """How each row is sampled.

    Attributes:
        temperature: (rows,); 0 is greedy.
        top_p: (rows,), in (0, 1].
        has_nucleus: Whether top_p cuts the distribution of any row.
    """

    temperature: Tensor
    top_p: Tensor
    has_nucleus: bool

    @classmethod
    def of(cls, temperatures: Sequence[float], top_ps: Sequence[float], device: torch.device) -> RowSettings:
        """Return the settings of rows with these temperatures and nuclei."""
        is_cut = any(top_p < 1 and temperature > 0 for temperature, top_p in zip(temperatures, top_ps, strict=True))
        return cls(torch.tensor(temperatures, device=device), torch.tensor(top_ps, device=device), is_cut)


def next_tokens(
    logits: Tensor, settings: RowSettings, uniform: Tensor, rules: GenerationRules | None = None
) -> tuple[Tensor, Tensor]:
    """Sample one token for each row, by the inverse CDF over the vocabulary's order.

    The nucleus is the smallest set of most probable tokens whose mass reaches top_p (Holtzman et al. 2020).

    Args:
        logits: (rows, vocabulary).
        settings: Of the rows.
        uniform: (rows,), float64 random numbers in [0, 1).
        rules: Further cuts of the distribution, such as top_k. Greedy rows ignore them.

    Returns:
        The ids, (rows,), and their log-probabilities under the distribution sampled from, (rows,) float64. The
        log-probability is NaN if a logit of the row is NaN, and then the id is any id.
    """
    temperature, top_p = settings.temperature, settings.top_p
    is_greedy = temperature <= 0
    scaled = logits.float() / torch.where(is_greedy, 1.0, temperature).unsqueeze(-1)
    logprobs = log_softmax(scaled if rules is None else rules.before_nucleus(scaled), dim=-1)
    if settings.has_nucleus:
        logprobs = torch.where((top_p < 1).unsqueeze(-1), _nucleus(logprobs, top_p), logprobs)
    if rules is not None:
        logprobs = log_softmax(rules.after_nucleus(logprobs), dim=-1)
    cdf = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    total = cdf[:, -1]
    # The target is strictly below the total despite rounding, so that the token found always has mass.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cdf, target.unsqueeze(-1), right=True).squeeze(-1)
    # Only among numbers that are NaN can the search end behind the vocabulary.
    ids = torch.where(is_greedy, logits.argmax(dim=-1), ids).clamp_max(logits.shape[-1] - 1)
    taken = logprobs.gather(1, ids.unsqueeze(-1)).squeeze(-1).double()
    return ids, torch.where(total.isnan(), total, torch.where(is_greedy, 0.0, taken))


def uniform_draws(seed: int, candidate: int, count: int) -> Tensor:
    """Return float64 random numbers in [0, 1), (count,), from a stream of their own for each seed and candidate.

    The first ones are the same whatever the count.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + (candidate + 1) * 0xD1B54A32D192ED03) % 2**63
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(mixed))


def _nucleus(logprobs: Tensor, top_p: Tensor) -> Tensor:
    """Renormalise over each row's nucleus, which has the most probable token; outside it the result is -inf."""
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    mass = ordered.exp()
    before = mass.cumsum(dim=-1, dtype=torch.float64) - mass
    is_outside = before >= top_p.unsqueeze(-1)
    is_outside[:, 0] = False
    kept = torch.full_like(logprobs, float("-inf")).scatter(1, order, ordered.masked_fill(is_outside, float("-inf")))
    return log_softmax(kept, dim=-1)
