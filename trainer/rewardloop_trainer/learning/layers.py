"""The layers of a transformer: which ones learn, and which ones compute their activations a second time."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_RECOMPUTES = "_recomputes_activations"


def layer_stack(trunk: nn.Module) -> nn.ModuleList:
    """The trunk's layers, lowest first. Raises ValueError if the trunk has none."""
    stacks = [m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not stacks:
        raise ValueError(f"{type(trunk).__name__} has no list of layers")
    return max(stacks, key=len)


def freeze_layers(trunk: nn.Module, layers: int) -> None:
    """Freeze the embeddings and the lowest ``layers`` layers; 0 freezes nothing.

    Raises:
        ValueError: If the trunk has fewer layers.
    """
    if layers == 0:
        return
    stack = layer_stack(trunk)
    if layers > len(stack):
        raise ValueError(f"cannot freeze {layers} layers of {len(stack)}")
    last = list(stack[layers - 1].parameters())[-1]
    for parameter in trunk.parameters():  # in the order of the computation
        parameter.requires_grad_(False)
        if parameter is last:
            return


def recompute_layers(trunk: nn.Module) -> None:
    """Let each layer keep only its inputs for the backward pass and compute its activations again there.

    The gradients are the same. Also layers in evaluation mode do so, in which transformers' own gradient checkpointing
    is off, because policies learn without dropout. Passes without gradients are as before.
    """
    for layer in layer_stack(trunk):
        if not hasattr(type(layer), _RECOMPUTES):
            layer.__class__ = _recomputing(type(layer))  # type: ignore[arg-type]  # mypy finds classes unhashable


@cache
def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    # A class, and not an attribute of the layer: a deep copy of the layer then computes with its own weights.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return kind.forward(self, *args, **kwargs)
        return checkpoint(kind.forward, self, *args, use_reentrant=False, **kwargs)

    made = {"forward": forward, "__module__": kind.__module__, _RECOMPUTES: True}
    return cast(type[nn.Module], type(kind.__name__, (kind,), made))
