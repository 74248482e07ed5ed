"""Samples from a causal language model, many prompts at once, without a server or a tokenizer.

Each candidate draws uniform numbers from its own seed, and maps them to tokens by the inverse of its distribution's
CDF. So its text does not depend on what it is batched with. The candidates of one prompt share one prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from rewardloop_sampling.decoding import Decoding
from rewardloop_sampling.generation_rules import GenerationRules, ProcessedRows

Finish: TypeAlias = Literal["stop", "length"]

# Ended rows are removed from the batch once they are this share of it, because removing rows copies the cache.
_COMPACT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt and how to answer it.

    Attributes:
        prompt: Token ids, at least one.
        candidates: How many answers to sample.
        temperature: Divides the logits; 0 is greedy.
        top_p: Mass of the nucleus, in (0, 1].
        seed: Fixes the random numbers of each candidate, together with its index. So candidate 2 is the same whether 3
            or 5 candidates are asked for.
        max_new_tokens: Most tokens of a candidate.
    """

    prompt: Sequence[int]
    candidates: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Sampled:
    """One candidate.

    Attributes:
        ids: The sampled ids, with the end token if it came.
        logprobs: The log-probability of each id, in nats. They are of the distribution that was sampled from, after
            temperature, top_p and the generation rules, so they are all 0 if the sampling is greedy.
        finish: Whether it ended by an end token ("stop") or by its length.
    """

    ids: list[int]
    logprobs: list[float]
    finish: Finish

    @property
    def logprob(self) -> float:
        """The sum of the log-probabilities over the tokens."""
        return sum(self.logprobs)


@torch.inference_mode()
def sample(
    model: Any,
    requests: Sequence[SampleRequest],
    *,
    end_ids: Collection[int],
    pad_id: int,
    rules: GenerationRules | None = None,
    is_abandoned: Callable[[int], bool] = lambda request: False,
    is_said: Callable[[int, int, Sequence[int]], bool] | None = None,
) -> list[list[Sampled]]:
    """Return the candidates of each request, in order.

    Args:
        model: A Hugging Face causal language model in eval mode.
        requests: What to sample. A prompt and its new tokens together must fit the model's positions.
        end_ids: Ids after which sampling of a candidate stops.
        pad_id: The id of the padding token.
        rules: What the checkpoint's generation config does to the logits. Without rules the samples are of the plain
            policy, whose probabilities the losses of the trainer assume.
        is_abandoned: Asked at each step, with a request's index. Once it returns True, the request's candidates end as
            they are.
        is_said: Told of each token that ends no candidate, with the indices of request and candidate, and the
            candidate's ids so far. If it returns True, the candidate ends there, with "length".

    Raises:
        ValueError: A request has an empty prompt, no candidate or no new token.
        FloatingPointError: The model gave logits that are NaN.
    """
    if not requests:
        return []
    for request in requests:
        if not request.prompt or request.candidates < 1 or request.max_new_tokens < 1:
            raise ValueError("a request needs a prompt, a candidate and room for a token")
    rows = _Rows(requests, frozenset(end_ids), model.device, rules, is_said)
    forward = Decoding(model, [request.prompt for request in requests], pad_id)
    logits = forward.prefill(rows.request_of)
    while True:
        ids = rows.take(logits)
        rows.end(is_abandoned)
        if not rows.is_running.any():
            return rows.results()
        if (~rows.is_running).float().mean() >= _COMPACT_SHARE:
            kept = rows.compact()
            forward.keep(kept)
            ids = ids[kept]
        logits = forward.step(ids)


def end_ids(model: Any, ends: Sequence[int]) -> frozenset[int]:
    """Return the ids that end an answer: those of the text format, and the model's own end tokens."""
    named = getattr(model.generation_config, "eos_token_id", None)
    others = [named] if isinstance(named, int) else list(named or ())
    return frozenset([*ends, *others])


def next_tokens(
    logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor, rules: GenerationRules | None = None
) -> tuple[Tensor, Tensor]:
    """Sample one token for each row, by the inverse CDF over the vocabulary's order.

    The nucleus is the smallest set of most probable tokens whose mass reaches top_p (Holtzman et al. 2020).

    Args:
        logits: (rows, vocabulary).
        temperature: (rows,); 0 is greedy.
        top_p: (rows,), in (0, 1].
        uniform: (rows,), float64 random numbers in [0, 1).
        rules: Further cuts of the distribution, such as top_k. Greedy rows ignore them.

    Returns:
        The ids, (rows,), and their log-probabilities under the distribution sampled from, (rows,) float64.

    Raises:
        FloatingPointError: A logit is NaN.
    """
    is_greedy = temperature <= 0
    scaled = logits.float() / torch.where(is_greedy, 1.0, temperature).unsqueeze(-1)
    logprobs = log_softmax(scaled if rules is None else rules.before_nucleus(scaled), dim=-1)
    if bool(((top_p < 1) & ~is_greedy).any()):
        logprobs = torch.where((top_p < 1).unsqueeze(-1), _nucleus(logprobs, top_p), logprobs)
    if rules is not None:
        logprobs = log_softmax(rules.after_nucleus(logprobs), dim=-1)
    cdf = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    total = cdf[:, -1]
    if bool(total.isnan().any()):
        raise FloatingPointError("the model's logits are not numbers")
    # The target is strictly below the total despite rounding, so that the token found always has mass.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cdf, target.unsqueeze(-1), right=True).squeeze(-1)
    ids = torch.where(is_greedy, logits.argmax(dim=-1), ids)
    taken = logprobs.gather(1, ids.unsqueeze(-1)).squeeze(-1).double()
    return ids, torch.where(is_greedy, 0.0, taken)


def _nucleus(logprobs: Tensor, top_p: Tensor) -> Tensor:
    """Renormalise over each row's nucleus, which has the most probable token; outside it the result is -inf."""
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    mass = ordered.exp()
    before = mass.cumsum(dim=-1, dtype=torch.float64) - mass
    is_outside = before >= top_p.unsqueeze(-1)
    is_outside[:, 0] = False
    kept = torch.full_like(logprobs, float("-inf")).scatter(1, order, ordered.masked_fill(is_outside, float("-inf")))
    return log_softmax(kept, dim=-1)


class _Rows:
    """The candidates in the batch, their random numbers, and the tokens of each so far."""

    def __init__(
        self,
        requests: Sequence[SampleRequest],
        end_ids: frozenset[int],
        device: torch.device,
        rules: GenerationRules | None,
        is_said: Callable[[int, int, Sequence[int]], bool] | None = None,
    ) -> None:
        self._is_said = is_said
        pairs = [(i, c) for i, request in enumerate(requests) for c in range(request.candidates)]
        self._requests = requests
        self._places = pairs
        self._end_ids = end_ids
        self._ids: list[list[int]] = [[] for _ in pairs]
        self._logprobs: list[list[float]] = [[] for _ in pairs]
        self._finish: list[Finish] = ["length" for _ in pairs]
        self._alive = list(range(len(pairs)))
        self.request_of = torch.tensor([i for i, _ in pairs], device=device)
        self.is_running = torch.ones(len(pairs), dtype=torch.bool)
        self._temperature = torch.tensor([requests[i].temperature for i, _ in pairs], device=device)
        self._top_p = torch.tensor([requests[i].top_p for i, _ in pairs], device=device)
        width = max(request.max_new_tokens for request in requests)
        self._uniform = torch.stack([_draws(requests[i].seed, c, width) for i, c in pairs]).to(device)
        self._step = 0
        self._rules = rules
        prompts = [requests[i].prompt for i, _ in pairs]
        self._processed = None if rules is None else ProcessedRows(rules, prompts, device)

    def take(self, logits: Tensor) -> Tensor:
        """Choose each row's next token. Returns ids, (rows,). The id of a row that has ended is not used."""
        if self._processed is not None:
            logits = self._processed.scores(logits)
        uniform = self._uniform[:, self._step]
        ids, logprobs = next_tokens(logits, self._temperature, self._top_p, uniform, self._rules)
        self._step += 1
        if self._processed is not None:
            self._processed.append(ids)
        running = self.is_running.tolist()
        for place, (row, token, logprob) in enumerate(zip(self._alive, ids.tolist(), logprobs.tolist(), strict=True)):
            if not running[place]:
                continue
            said = self._ids[row]
            said.append(token)
            self._logprobs[row].append(logprob)
            if token in self._end_ids:
                self._finish[row] = "stop"
                self.is_running[place] = False
            else:
                is_over = self._is_said is not None and self._is_said(*self._places[row], said)
                if is_over or len(said) == self._requests[self._places[row][0]].max_new_tokens:
                    self.is_running[place] = False
        return ids

    def end(self, is_abandoned: Callable[[int], bool]) -> None:
        """End the candidates of abandoned requests."""
        running = self.is_running.tolist()
        for place, row in enumerate(self._alive):
            if running[place] and is_abandoned(self._places[row][0]):
                self.is_running[place] = False

    def compact(self) -> Tensor:
        """Drop the rows that have ended. Returns the indices of the rows kept, ascending."""
        kept = self.is_running.nonzero().squeeze(-1)
        self._alive = [self._alive[place] for place in kept.tolist()]
        self.is_running = self.is_running[kept]
        on_device = kept.to(self._uniform.device)
        self._temperature, self._top_p = self._temperature[on_device], self._top_p[on_device]
        self._uniform = self._uniform[on_device]
        if self._processed is not None:
            self._processed.keep(on_device)
        return on_device

    def results(self) -> list[list[Sampled]]:
        """Return the candidates of each request."""
        grouped: list[list[Sampled]] = [[] for _ in self._requests]
        for (request, _), ids, logprobs, finish in zip(
            self._places, self._ids, self._logprobs, self._finish, strict=True
        ):
            grouped[request].append(Sampled(ids, logprobs, finish))
        return grouped


def _draws(seed: int, candidate: int, count: int) -> Tensor:
    """Return float64 random numbers in [0, 1), (count,), from a stream of their own for each seed and candidate."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (candidate + 1) * 0xD1B54A32D192ED03) % 2**63
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(mixed))
