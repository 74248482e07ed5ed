"""Finds the linear layers of a transformer that get adapters."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import nn
from transformers.pytorch_utils import Conv1D

AdapterModules: TypeAlias = Literal["none", "query_value", "attention", "all"]
_QUERY_VALUE = {"query", "value", "q_proj", "v_proj", "query_proj", "value_proj", "q_lin", "v_lin", "q", "v"}
_FUSED_QUERY_VALUE = {"c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv"}


def linear_modules(trunk: nn.Module, which: AdapterModules) -> tuple[str, ...]:
    """Paths in the trunk of the linear layers that ``which`` chooses.

    Layers are recognised by their names. If an architecture names its layers differently, so that the choice would be
    empty, the next larger choice is taken: all of the attention instead of query and value, all layers instead of the
    attention.
    """
    if which == "none":
        return ()
    paths = tuple(name for name, module in trunk.named_modules() if isinstance(module, nn.Linear | Conv1D))
    attention = tuple(p for p in paths if "attn" in p or "attention" in p)
    query_value = tuple(p for p in paths if p.rpartition(".")[2] in _QUERY_VALUE | _FUSED_QUERY_VALUE)
    if which == "query_value" and query_value:
        return query_value
    return attention if which != "all" and attention else paths
