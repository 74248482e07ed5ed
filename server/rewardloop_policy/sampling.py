"""Sampling from a causal language model, many prompts at once. Pure torch: no server, no tokenizer.

Each candidate draws its own uniform numbers from its own seed and maps them to tokens by the inverse of its
distribution's CDF, so what it says does not depend on what it is batched with. The candidates of one prompt share
one prefill.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers.cache_utils import Cache, CacheLayerMixin

Finish: TypeAlias = Literal["stop", "length"]

# Rows that have ended are cut out of the batch once they are this share of it: a cut copies the cache.
_COMPACT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt and how to answer it.

    ``prompt``: ids, at least one. ``temperature`` divides the logits; 0 is greedy. ``top_p``: nucleus mass in (0, 1].
    ``seed`` and a candidate's index fix its random numbers: candidate 2 is the same whether 3 or 5 are asked for.
    """

    prompt: Sequence[int]
    candidates: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Sampled:
    """One candidate: sampled ids with the end token, if it came, and each one's log-probability in nats.

    The probabilities are those of the distribution sampled from: after temperature and top_p, so all 1 when greedy.
    """

    ids: list[int]
    logprobs: list[float]
    finish: Finish

    @property
    def logprob(self) -> float:
        """Sum over the tokens."""
        return sum(self.logprobs)


@torch.inference_mode()
def sample(
    model: Any, requests: Sequence[SampleRequest], *, end_ids: Collection[int], pad_id: int
) -> list[list[Sampled]]:
    """The candidates of each request, in order.

    ``model``: a Hugging Face causal LM in eval mode whose layers attend to everything before them. Prompt and new
    tokens together must fit its positions. Sampling stops after any of ``end_ids``.
    Raises ValueError for an empty prompt, no candidate or no new token, and FloatingPointError for logits that are NaN.
    """
    if not requests:
        return []
    for request in requests:
        if not request.prompt or request.candidates < 1 or request.max_new_tokens < 1:
            raise ValueError("a request needs a prompt, a candidate and room for a token")
    rows = _Rows(requests, frozenset(end_ids), model.device)
    forward = _Forward(model, [request.prompt for request in requests], pad_id)
    logits = forward.prefill(rows.request_of, max(request.max_new_tokens for request in requests))
    while True:
        ids = rows.take(logits)
        if not rows.is_running.any():
            return rows.results()
        if (~rows.is_running).float().mean() >= _COMPACT_SHARE:
            kept = rows.compact()
            forward.keep(kept)
            ids = ids[kept]
        logits = forward.step(ids)


def next_tokens(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverse CDF over the vocabulary's order.

    logits: (rows, vocabulary); temperature, top_p: (rows,); uniform: (rows,) float64 in [0, 1).
    Returns ids (rows,) and their log-probabilities (rows,) float64 under the distribution sampled from.
    The nucleus is the smallest set of most probable tokens whose mass reaches top_p (Holtzman et al. 2020).
    Raises FloatingPointError for logits that are NaN.
    """
    is_greedy = temperature <= 0
    scaled = logits.float() / torch.where(is_greedy, 1.0, temperature).unsqueeze(-1)
    logprobs = log_softmax(scaled, dim=-1)
    if bool(((top_p < 1) & ~is_greedy).any()):
        logprobs = torch.where((top_p < 1).unsqueeze(-1), _nucleus(logprobs, top_p), logprobs)
    cdf = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    total = cdf[:, -1]
    if bool(total.isnan().any()):
        raise FloatingPointError("the model's logits are not numbers")
    # Strictly below the total, whatever rounding does: the token found always has mass.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cdf, target.unsqueeze(-1), right=True).squeeze(-1)
    ids = torch.where(is_greedy, logits.argmax(dim=-1), ids)
    taken = logprobs.gather(1, ids.unsqueeze(-1)).squeeze(-1).double()
    return ids, torch.where(is_greedy, 0.0, taken)


def _nucleus(logprobs: Tensor, top_p: Tensor) -> Tensor:
    """Log-probabilities renormalised over each row's nucleus, -inf outside it; the most probable token is in it."""
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    mass = ordered.exp()
    before = mass.cumsum(dim=-1, dtype=torch.float64) - mass
    is_outside = before >= top_p.unsqueeze(-1)
    is_outside[:, 0] = False
    kept = torch.full_like(logprobs, float("-inf")).scatter(1, order, ordered.masked_fill(is_outside, float("-inf")))
    return log_softmax(kept, dim=-1)


class _Rows:
    """The candidates that are in the batch, their random numbers, and what each has said."""

    def __init__(self, requests: Sequence[SampleRequest], end_ids: frozenset[int], device: torch.device) -> None:
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

    def take(self, logits: Tensor) -> Tensor:
        """Choose each row's next token. Returns ids (rows,); rows that had ended get one that nobody reads."""
        ids, logprobs = next_tokens(logits, self._temperature, self._top_p, self._uniform[:, self._step])
        self._step += 1
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
            elif len(said) == self._requests[self._places[row][0]].max_new_tokens:
                self.is_running[place] = False
        return ids

    def compact(self) -> Tensor:
        """Drop the rows that have ended. Returns the places kept, ascending."""
        kept = self.is_running.nonzero().squeeze(-1)
        self._alive = [self._alive[place] for place in kept.tolist()]
        self.is_running = self.is_running[kept]
        on_device = kept.to(self._uniform.device)
        self._temperature, self._top_p = self._temperature[on_device], self._top_p[on_device]
        self._uniform = self._uniform[on_device]
        return on_device

    def results(self) -> list[list[Sampled]]:
        grouped: list[list[Sampled]] = [[] for _ in self._requests]
        for (request, _), ids, logprobs, finish in zip(
            self._places, self._ids, self._logprobs, self._finish, strict=True
        ):
            grouped[request].append(Sampled(ids, logprobs, finish))
        return grouped


def _draws(seed: int, candidate: int, count: int) -> Tensor:
    """(count,) float64 in [0, 1): a stream of its own for each seed and candidate."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (candidate + 1) * 0xD1B54A32D192ED03) % 2**63
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(mixed))


class _Forward:
    """The model with its key-value cache: left-padded prompts, then one token a row and step."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        self._model = model
        self._cache = Cache(layer_class_to_replicate=_GrowingLayer)
        # Transformers renamed the argument in 5.2x and warns on each call with the old name.
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        width = max(len(prompt) for prompt in prompts)
        padded = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        self._prompt_ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        columns = torch.arange(width, device=model.device)
        self._is_token = columns >= (width - lengths).unsqueeze(-1)
        self._lengths = lengths
        self._width = width

    def prefill(self, request_of: Tensor, max_new_tokens: int) -> Tensor:
        """Read each prompt once, then give each row its prompt's cache.

        request_of: (rows,), index of a row's prompt. Returns logits (rows, vocabulary).
        """
        positions = (self._is_token.long().cumsum(-1) - 1).clamp_min(0)
        causal = torch.ones(self._width, self._width, dtype=torch.bool, device=self._is_token.device).tril()
        # A padded position sees itself, or its softmax would be over nothing.
        itself = torch.eye(self._width, dtype=torch.bool, device=self._is_token.device)
        mask = None if bool(self._is_token.all()) else (causal & self._is_token[:, None, :] | itself).unsqueeze(1)
        logits = self._run(self._prompt_ids, mask, positions)
        self._select(request_of, self._width + max_new_tokens)
        self._is_padded = mask is not None
        open_end = torch.ones(len(request_of), max_new_tokens, dtype=torch.bool, device=self._is_token.device)
        self._is_token = torch.cat([self._is_token[request_of], open_end], dim=1)
        self._lengths = self._lengths[request_of]
        return logits[request_of]

    def step(self, ids: Tensor) -> Tensor:
        """Append a token to each row. ids: (rows,). Returns logits (rows, vocabulary)."""
        self._width += 1
        mask = self._is_token[:, None, None, : self._width] if self._is_padded else None
        logits = self._run(ids.unsqueeze(-1), mask, self._lengths.unsqueeze(-1))
        self._lengths = self._lengths + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self._is_token, self._lengths = self._is_token[rows], self._lengths[rows]
        self._select(rows, self._is_token.shape[1])

    def _select(self, rows: Tensor, capacity: int) -> None:
        for layer in cast("list[_GrowingLayer]", self._cache.layers):
            layer.select(rows, capacity)

    def _run(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: self._cache},
        )
        logits: Tensor = output.logits[:, -1]
        return logits


class _GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers is half typed
    """Keys and values of one layer in buffers with room to grow: appending a token copies that token alone.

    Buffers: (rows, heads, capacity, head size); the first ``_used`` columns are filled.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states, value_states
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._used = key_states.shape[2]
            return key_states, value_states
        end = self._used + key_states.shape[2]
        self.keys[:, :, self._used : end] = key_states
        self.values[:, :, self._used : end] = value_states
        self._used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Tensor, capacity: int) -> None:
        """Rows by index, repeated or left out, in new buffers of ``capacity`` columns."""
        self.keys = self._selected(self.keys, rows, capacity)
        self.values = self._selected(self.values, rows, capacity)

    def _selected(self, buffer: Tensor, rows: Tensor, capacity: int) -> Tensor:
        new = buffer.new_empty(len(rows), buffer.shape[1], capacity, buffer.shape[3])
        new[:, :, : self._used] = buffer[:, :, : self._used].index_select(0, rows)
        return new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._used + query_length, 0

    def get_seq_length(self) -> int:
        return self._used

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` in older transformers."""
        return -1
