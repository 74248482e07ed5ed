"""Separates what a causal language model does after its trunk, so that it can be done for some tokens at a time.

The model's own forward method is run with its trunk replaced by a stand-in, which returns states that are already
known. So whatever an architecture does with them is done as it does it: adapters on the last layer, embeddings that are
tied to it, scaled logits, and logits bounded by tanh.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import structlog
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

log = structlog.get_logger()

# Logits that are computed at once: 256 MiB in float32. Each block of tokens needs a few tensors of this size for a
# moment, and adds to the gradient of the head's weights once, so that much smaller blocks are slower.
_BLOCK_LOGITS = 2**26
_TRIED_TOKENS = 8
# Why the head of a model cannot be separated; "" if it can.
_REASONS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class LanguageHead:
    """What a causal language model does with the last hidden states of its trunk."""

    def __init__(self, model: Any) -> None:
        """Share the model's parameters. Raises ValueError if the trunk is not a part of the model."""
        prefix = model.base_model_prefix
        if prefix not in model._modules:
            raise ValueError("its trunk is not a part of it")
        self._given = _Given()
        self._model = copy.copy(model)  # a shallow copy: the same parameters, adapters and settings
        self._model._modules = {**model._modules, prefix: self._given}
        self._vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)

    def logits(self, states: Tensor) -> Tensor:
        """Logits (n, vocabulary) of states (n, width), in the type in which the model computes them."""
        self._given.states = states.unsqueeze(0)
        try:
            ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
            found: Tensor = self._model(input_ids=ids, use_cache=False).logits
        finally:
            self._given.states = None
        return found.squeeze(0)

    def logprobs(self, states: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of tokens, computed for a block of tokens at a time, and again for the gradients.

        Args:
            states: (n, width), from which the tokens are predicted.
            targets: (n,), the tokens' ids.
            temperature: What the logits are divided by.

        Returns:
            (n,), in nats, float32.
        """
        size = max(1, _BLOCK_LOGITS // self._vocabulary)
        blocks = zip(torch.split(states, size), torch.split(targets, size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._block(*block, temperature) for block in blocks])
        return torch.cat([checkpoint(self._block, *block, temperature, use_reentrant=False) for block in blocks])

    def _block(self, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
        return logprobs_of(self.logits(states), targets, temperature)


def logprobs_of(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (n,) of tokens (n,), in nats, float32, by logits (n, vocabulary)."""
    logits = logits.float()
    if temperature != 1.0:  # a division makes another copy of the largest tensor
        logits = logits / temperature
    return -cross_entropy(logits, targets, reduction="none")


def head_of(model: Any) -> LanguageHead | None:
    """Separate a model's head.

    It is tried once for each model on a few tokens. Tensors without data show only that it runs.

    Args:
        model: A Hugging Face causal LM in evaluation mode.

    Returns:
        None if the model does not give the same logits in two parts as in one. A warning then names it.
    """
    if model not in _REASONS:
        _REASONS[model] = reason = _inseparable(model)
        if reason:
            log.warning(
                "this model's logits take memory for all tokens of a micro-batch at once: its head cannot be separated",
                model=type(model).__name__,
                reason=reason,
            )
    return None if _REASONS[model] else LanguageHead(model)


def keep_logits(model: Any, columns: int) -> Mapping[str, int]:
    """The argument by which a model computes logits for its last columns alone; none if it does not take it."""
    return {"logits_to_keep": columns} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


@torch.no_grad()
def _inseparable(model: Any) -> str:
    """Why a model's head cannot be separated; "" if it can."""
    ids = torch.arange(_TRIED_TOKENS, device=model.device).unsqueeze(0)
    try:
        whole = model(input_ids=ids, use_cache=False).logits[0]
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        in_parts = LanguageHead(model).logits(states.flip(0)).flip(0)  # the head must not see the order of tokens
    except Exception as error:  # architectures that are put together otherwise fail in many ways
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    if in_parts.shape != whole.shape:
        return f"its shape is {tuple(in_parts.shape)}, and not {tuple(whole.shape)}"
    if isinstance(whole, FakeTensor):
        return ""
    difference = (in_parts - whole).abs().max().item()
    allowed = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max().item()
    return "" if difference <= allowed else f"its logits differ by {difference:.3g}"


class _Given(nn.Module):
    """Stands in for a trunk: it returns the states (1, n, width) that it holds, whatever it is given."""

    states: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.states = None

    @property
    def decoder(self) -> _Given:
        """The part that some architectures call in the trunk's place."""
        return self

    def forward(self, *_: Any, **__: Any) -> _Output:
        return _Output(self.states)


class _Output:
    """What a trunk returns, with nothing in it but its last hidden states."""

    def __init__(self, states: Tensor | None) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, _: str) -> None:
        return None
