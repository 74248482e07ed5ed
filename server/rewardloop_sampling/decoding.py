"""Decoding with a cache: each prompt is read once, then each row gets one token at a step."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rewardloop_sampling.loading import most_positions

_LEAST_ROOM = 64  # columns


class Decoding:
    """A causal language model with its cache.

    The model makes the attention masks of its layers itself, from the mask of padding that it is given. So windows,
    chunks and recurrent layers work as they do in `generate` of transformers. Each row's tokens are in the last columns
    of the cache, without gaps, because some models tell positions by columns.

    Args:
        model: A Hugging Face causal language model.
        prompts: Token ids of each prompt. They are padded on the left.
        pad_id: The id of the padding token.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        self._model = model
        self._most_columns = most_positions(model.config)
        self._cache: Any = _PaddedCache(layers=cache_layers(model.config))
        accepted = inspect.signature(model.forward).parameters
        # Transformers 5.2x renamed the argument, and warns at each call with the old name.
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        # Models with relative positions have no argument for absolute ones.
        self._has_positions = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._lengths = [len(prompt) for prompt in prompts]  # tokens of each row
        self._columns = max(self._lengths)
        padded = [[pad_id] * (self._columns - len(prompt)) + list(prompt) for prompt in prompts]
        self._prompt_ids = torch.tensor(padded, device=model.device)
        self._set_padding()

    @property
    def can_join(self) -> bool:
        """Whether rows may join this one, or leave it and join another one: not if a layer is recurrent."""
        return all(isinstance(layer, _GrowingLayer) for layer in self._cache.layers)

    @property
    def is_full(self) -> bool:
        """Whether the longest row has as many tokens as the model reads."""
        return self._most_columns is not None and self._columns >= self._most_columns

    def prefill(self, request_of: Sequence[int]) -> Tensor:
        """Read each prompt once, then give each row its prompt's cache.

        Args:
            request_of: For each row the index of its prompt.

        Returns:
            Logits of the next token, (rows, vocabulary).
        """
        positions = (self._is_token().long().cumsum(-1) - 1).clamp_min(0)
        logits = self._run(self._prompt_ids, positions)
        return logits[self.keep(request_of)]

    def step(self, ids: Tensor) -> Tensor:
        """Append a token, ``ids`` (rows,), to each row. Returns logits of the next token, (rows, vocabulary)."""
        positions = self._columns - self._padding
        self._columns += 1
        self._lengths = [length + 1 for length in self._lengths]
        return self._run(ids.unsqueeze(-1), positions.unsqueeze(-1))

    def keep(self, rows: Sequence[int]) -> Tensor:
        """Continue with these rows alone, given by their indices. A row may be repeated or left out.

        Returns:
            The indices on the device, (rows,).
        """
        kept = torch.tensor(rows, device=self._model.device)
        self._lengths = [self._lengths[row] for row in rows]
        if self.can_join:
            self._columns = max(self._lengths)
            for layer in self._cache.layers:
                layer.trim(self._columns)
        self._cache.reorder_cache(kept)
        self._set_padding()
        return kept

    def join(self, other: Decoding) -> None:
        """Append the rows of another one of the same model, which is not used any more. Both must be able to join."""
        self._columns = max(self._columns, other._columns)
        self._lengths += other._lengths
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.join(theirs, self._columns)
        self._set_padding()

    def _set_padding(self) -> None:
        self._padding = torch.tensor([self._columns - length for length in self._lengths], device=self._model.device)

    def _is_token(self) -> Tensor:
        return torch.arange(self._columns, device=self._padding.device) >= self._padding.unsqueeze(-1)

    def _is_padded(self, tokens: int) -> bool:
        """Return whether the model is to hide padding from ``tokens`` new tokens."""
        # Recurrent layers leave the padding out of their state when they read the prompts.
        has_columns = tokens > 1 or any(isinstance(layer, CacheLayerMixin) for layer in self._cache.layers)
        return has_columns and min(self._lengths) < self._columns

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        is_padded = self._is_padded(ids.shape[1])
        self._cache.is_padded = is_padded and ids.shape[1] == 1
        output = self._model(
            input_ids=ids,
            # Without padding the model may skip the mask, which is faster.
            attention_mask=self._is_token().long() if is_padded else None,
            use_cache=True,
            **({"position_ids": positions} if self._has_positions else {}),
            **self._last_only,
            **{self._cache_name: self._cache},
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def fixed_layers(config: Any) -> set[str]:
    """Return the kinds of a model's cache layers whose rows no others can join. Without any, requests may join."""
    return {type(layer).__name__ for layer in cache_layers(config) if not isinstance(layer, _GrowingLayer)}


def cache_layers(config: Any) -> list[Any]:
    """Return an empty cache for each layer of a model: ours for attention, that of transformers for other kinds.

    A layer with a sliding window keeps all keys, because the model's mask hides those outside the window.
    """
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    layers: list[Any] = DynamicCache(config=config).layers
    return [_GrowingLayer(is_sliding=layer.is_sliding) if type(layer) in plain else layer for layer in layers]


class _PaddedCache(Cache):
    """A cache that may say that there is padding, so that the model makes its mask without asking.

    Before a step, a model reads whether its mask hides anything, for which it waits for the device. It does not if its
    cache has a fixed size, which is what "compileable" means to it.
    """

    is_padded = False

    @property
    def is_compileable(self) -> bool:
        return self.is_padded


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

    def trim(self, columns: int) -> None:
        """Drop the columns before the last ``columns`` ones, which are padding in every row."""
        if self.is_initialized:
            first = self._used - columns
            self.keys, self.values = self.keys[:, :, first : self._used], self.values[:, :, first : self._used]
            self._used = columns

    def join(self, other: _GrowingLayer, columns: int) -> None:
        """Append the rows of another layer, and place the tokens of all before column ``columns``."""
        if self.is_initialized:
            ends = (self._used, other._used)
            self.keys = _joined([self.keys, other.keys], ends, columns)
            self.values = _joined([self.values, other.values], ends, columns)
            self._used = columns

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


def _joined(buffers: Sequence[Tensor], used: Sequence[int], columns: int) -> Tensor:
    """Return the rows of all buffers in one with room to grow; see `_GrowingLayer`.

    The first columns of rows that have fewer are 0, because what is hidden from attention must be finite.
    """
    first, rows = buffers[0], sum(len(buffer) for buffer in buffers)
    found = first.new_empty(rows, first.shape[1], columns + _LEAST_ROOM, first.shape[3])
    row = 0
    for buffer, end in zip(buffers, used, strict=True):
        part = found[row : row + len(buffer)]
        part[:, :, : columns - end] = 0
        part[:, :, columns - end : columns] = buffer[:, :, :end]
        row += len(buffer)
    return found
