"""Decoding with a cache: each prompt is read once, then each row gets one token at a step."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_LEAST_ROOM = 64  # columns


class Decoding:
    """A causal language model with its cache.

    The model makes the attention masks of its layers itself, from the mask of padding that it is given. So windows,
    chunks and recurrent layers work as they do in `generate` of transformers.

    Args:
        model: A Hugging Face causal language model.
        prompts: Token ids of each prompt. They are padded on the left.
        pad_id: The id of the padding token.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        self._model = model
        self._cache: Any = Cache(layers=cache_layers(model.config))
        accepted = inspect.signature(model.forward).parameters
        # Transformers 5.2x renamed the argument, and warns at each call with the old name.
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        # Models with relative positions have no argument for absolute ones.
        self._has_positions = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        width = max(len(prompt) for prompt in prompts)
        padded = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        self._prompt_ids = torch.tensor(padded, device=model.device)
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self._is_token = torch.arange(width, device=model.device) >= (width - self._lengths).unsqueeze(-1)
        self._is_padded = not bool(self._is_token.all())

    def prefill(self, request_of: Tensor) -> Tensor:
        """Read each prompt once, then give each row its prompt's cache.

        Args:
            request_of: For each row the index of its prompt, (rows,).

        Returns:
            Logits of the next token, (rows, vocabulary).
        """
        positions = (self._is_token.long().cumsum(-1) - 1).clamp_min(0)
        logits = self._run(self._prompt_ids, positions)
        if not any(isinstance(layer, CacheLayerMixin) for layer in self._cache.layers):
            self._is_padded = False  # recurrent states alone: they left the padding out, and no later step sees it
        self.keep(request_of)
        return logits[request_of]

    def step(self, ids: Tensor) -> Tensor:
        """Append a token, ``ids`` (rows,), to each row. Returns logits of the next token, (rows, vocabulary)."""
        if self._is_padded:
            self._is_token = torch.nn.functional.pad(self._is_token, (0, 1), value=True)
        logits = self._run(ids.unsqueeze(-1), self._lengths.unsqueeze(-1))
        self._lengths = self._lengths + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows alone, given by their indices, (rows,). A row may be repeated or left out."""
        self._is_token, self._lengths = self._is_token[rows], self._lengths[rows]
        self._cache.reorder_cache(rows)

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids,
            # Without padding the model may skip the mask, which is faster.
            attention_mask=self._is_token.long() if self._is_padded else None,
            use_cache=True,
            **({"position_ids": positions} if self._has_positions else {}),
            **self._last_only,
            **{self._cache_name: self._cache},
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def cache_layers(config: Any) -> list[Any]:
    """Return an empty cache for each layer of a model: ours for attention, that of transformers for other kinds.

    A layer with a sliding window keeps all keys, because the model's mask hides those outside the window.
    """
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    layers: list[Any] = DynamicCache(config=config).layers
    return [_GrowingLayer(is_sliding=layer.is_sliding) if type(layer) in plain else layer for layer in layers]


class _GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers is half typed
    """Keys and values of one layer, in buffers with room to grow, so that appending a token copies only that token.

    The buffers are (rows, heads, columns, head size). Their first ``_used`` columns are filled.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, *, is_sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_sliding = is_sliding
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
        if end > self.keys.shape[2]:
            columns = end + max(_LEAST_ROOM, end // 2)
            self.keys, self.values = self._grown(self.keys, columns), self._grown(self.values, columns)
        self.keys[:, :, self._used : end] = key_states
        self.values[:, :, self._used : end] = value_states
        self._used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows by index. A row may be repeated or left out."""
        if self.is_initialized:
            self.keys = self.keys[:, :, : self._used].index_select(0, beam_idx)
            self.values = self.values[:, :, : self._used].index_select(0, beam_idx)

    def _grown(self, buffer: Tensor, columns: int) -> Tensor:
        new = buffer.new_empty(*buffer.shape[:2], columns, buffer.shape[3])
        new[:, :, : self._used] = buffer[:, :, : self._used]
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
