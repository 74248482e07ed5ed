"""Attention of the torch engine: without a mask where none is needed.

Decoders of transformers call it in each layer in the place of their own. Plain rows attend causally. Of a tree row
``[prompt, response 1, .., response k]`` that is alone in its run the prompt attends causally, and then each response
behind the keys and values of the prompt, which it has as its past. So no scores between responses are computed.
`rewardloop.formats.graphs.inputs` says what columns and places are. Encoders get a mask of the keys alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

NAME = "rewardloop"


@dataclass(frozen=True, slots=True)
class Responses:
    """Where the responses of a tree row are.

    Attributes:
        prompt: Tokens of the prompt, which the row begins with.
        columns: (responses, longest response), the columns of each response's tokens.
        places: (columns after the prompt,), the flat index into ``columns`` of each.
    """

    prompt: int
    columns: Tensor
    places: Tensor


@dataclass(slots=True)
class Way:
    """How the tokens of a decoder's run see each other.

    Attributes:
        windows: The tokens that each layer's attention spans, None for a layer without a bound.
        responses: Where the responses are; None for plain rows, each of which is causal.
        layers: The layers that have attended this way.
        past: Keys and values of each layer of a prompt that the run does not compute; its rows begin after the prompt.
        kept: Filled with those of the prompt that the run computes, by layer; None: they are not wanted.
    """

    windows: tuple[int | None, ...]
    responses: Responses | None = None
    layers: set[int] = field(default_factory=set)
    past: Sequence[tuple[Tensor, Tensor]] | None = None
    kept: dict[int, tuple[Tensor, Tensor]] | None = None


_WAY: ContextVar[Way | None] = ContextVar("way", default=None)


@contextmanager
def attending(way: Way) -> Iterator[None]:
    """Let decoders attend so that this thread runs within the block, where they are given no mask."""
    token = _WAY.set(way)
    try:
        yield
    finally:
        _WAY.reset(token)


def register() -> None:
    """Make the attention known to transformers by its `NAME`."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*, mask_function: Any, attention_mask: Tensor | None = None, **given: Any) -> Tensor | None:
    """Return the mask of a run, (rows, 1, 1 or length, length), bool, or None if it hides nothing.

    transformers calls it for encoders, and for decoders that were given no mask, whose attention is `_WAY`'s.
    """
    if _WAY.get() is not None:
        return None
    if mask_function is not bidirectional_mask_function:
        found: Tensor | None = sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **given)
        return found
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask[:, None, None, :].bool()


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' own function for SDPA does, whose arguments and result these are.

    Queries are (rows, heads, tokens, d), keys and values alike; the result is (rows, tokens, heads, d).
    """
    way = _WAY.get()
    if way is None or attention_mask is not None:
        return _sdpa(module, query, key, value, attention_mask, **given), None
    way.layers.add(module.layer_idx)
    if way.responses is None:
        return _causal(module, query, key, value, way.windows[module.layer_idx], given), None
    return _behind_prompt(module, query, key, value, way, way.responses, given), None


def _behind_prompt(
    module: Any, query: Tensor, key: Tensor, value: Tensor, way: Way, at: Responses, given: dict[str, Any]
) -> Tensor:
    window = way.windows[module.layer_idx]
    if way.past is None:
        asked, first, second = (each[:, :, : at.prompt] for each in (query, key, value))
        if way.kept is not None:
            way.kept[module.layer_idx] = (first.clone(), second.clone())
    else:
        first, second = way.past[module.layer_idx]
    responses, longest = at.columns.shape
    # (responses, heads, longest, d)
    own = [each[0][:, at.columns].transpose(0, 1) for each in (query, key, value)]
    behind = [
        torch.cat([past.expand(responses, -1, -1, -1), each], dim=2)
        for past, each in zip((first, second), own[1:], strict=True)
    ]
    found = _causal(module, own[0], behind[0], behind[1], window, given)
    back = found.reshape(responses * longest, *found.shape[2:])[at.places][None]
    if way.past is not None:
        return back
    return torch.cat([_causal(module, asked, first, second, window, given), back], dim=1)


def _causal(
    module: Any, query: Tensor, key: Tensor, value: Tensor, window: int | None, given: dict[str, Any]
) -> Tensor:
    """Attend causally. The last query is at the place of the last key."""
    length, seen = query.shape[2], key.shape[2]
    mask: Any = None
    if window is not None and seen > window:
        behind = torch.arange(seen - length, seen, device=query.device)[:, None] - torch.arange(
            seen, device=query.device
        )
        mask = ((behind >= 0) & (behind < window))[None, None]
    elif 1 < length < seen and query.is_cuda:
        mask = causal_lower_right(length, seen)  # an argument of flash attention
    elif 1 < length < seen:
        mask = torch.ones(length, seen, dtype=torch.bool).tril(seen - length)[None, None]
    return _sdpa(module, query, key, value, mask, **given)


def _sdpa(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any) -> Tensor:
    found: Tensor = sdpa_attention_forward(module, query, key, value, mask, **given)[0]
    return found
