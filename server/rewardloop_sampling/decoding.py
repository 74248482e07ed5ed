"""Decoding with a key-value cache: each prompt is read once, then each row gets one token at a step."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Decoding:
    """A causal language model with its key-value cache.

    Args:
        model: A Hugging Face causal language model.
        prompts: Token ids of each prompt. They are padded on the left.
        pad_id: The id of the padding token.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        self._model = model
        self._cache = Cache(layer_class_to_replicate=_GrowingLayer)
        # Transformers 5.2x renamed the argument, and warns at each call with the old name.
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

        Args:
            request_of: For each row the index of its prompt, (rows,).
            max_new_tokens: Most steps that will follow.

        Returns:
            Logits of the next token, (rows, vocabulary).
        """
        positions = (self._is_token.long().cumsum(-1) - 1).clamp_min(0)
        causal = torch.ones(self._width, self._width, dtype=torch.bool, device=self._is_token.device).tril()
        # A padded position sees itself, because a softmax over nothing is NaN.
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
        """Append a token, ``ids`` (rows,), to each row. Returns logits of the next token, (rows, vocabulary)."""
        self._width += 1
        mask = self._is_token[:, None, None, : self._width] if self._is_padded else None
        logits = self._run(ids.unsqueeze(-1), mask, self._lengths.unsqueeze(-1))
        self._lengths = self._lengths + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows alone, given by their indices, (rows,)."""
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
    """Keys and values of one layer, in buffers with room to grow, so that appending a token copies only that token.

    The buffers are (rows, heads, capacity, head size). Their first ``_used`` columns are filled.
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
        """Take rows by index into new buffers of ``capacity`` columns. A row may be repeated or left out."""
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
        """Return what `get_max_length` does, under its name in older versions of transformers."""
        return -1
