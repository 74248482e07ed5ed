"""In which type a model computes: that of its weights, or a narrower one over weights in float32 (torch's autocast)."""

from __future__ import annotations

from functools import cache, wraps
from typing import Any, cast

import torch
from torch import nn

_PLAIN = "_class_without_autocast"
_TYPE = "_type_of_autocast"


def compute_in(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let a module's forward passes run under autocast, in place.

    Matrix products are then computed in ``dtype``, and norms, losses and sums as torch chooses; weights and gradients
    keep their type.

    Args:
        module: A model, or a part of one that is also called alone.
        dtype: The type of matrix products; None: no autocast.
    """
    plain: Any = getattr(type(module), _PLAIN, type(module))
    module.__class__ = plain if dtype is None else _under_autocast(plain, dtype)


def autocast_of(module: nn.Module) -> torch.dtype | None:
    """The type that `compute_in` was given; None without autocast."""
    return getattr(type(module), _TYPE, None)


def computing_types(module: nn.Module) -> set[torch.dtype]:
    """The types in which a model computes: those of its parameters, and that of autocast."""
    types = {parameter.dtype for parameter in module.parameters()}
    dtype = autocast_of(module)
    return types if dtype is None else types | {dtype}


@cache
def _under_autocast(kind: type[nn.Module], dtype: torch.dtype) -> type[nn.Module]:
    # A class, and not an attribute of the module: a deep copy of the module then computes with its own weights.
    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.parameters()).device.type, dtype):
            return kind.forward(self, *args, **kwargs)

    made = {"forward": forward, "__module__": kind.__module__, _PLAIN: kind, _TYPE: dtype}
    return cast(type[nn.Module], type(kind.__name__, (kind,), made))
