"""Computes a mixture of experts in a form that the exporter can trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

_NAME = "rewardloop_dense"


@contextmanager
def dense_experts(config: Any) -> Iterator[None]:
    """Let every expert compute every token while a model of this configuration is traced.

    The graph then holds two products for each layer. It does the work of all experts, and its memory grows with tokens
    times experts. A product per token, with gathered weights, would copy the weights of an expert for each token.
    """
    before = config._experts_implementation
    config._experts_implementation = _NAME
    try:
        yield
    finally:
        config._experts_implementation = before


def _dense(experts: Any, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Weigh the outputs of all experts; those that were not chosen for a token have weight 0.

    Args:
        experts: A module whose class transformers marks with `use_experts_implementation`.
        states: (T, d).
        chosen: (T, k), ids of experts.
        weights: (T, k).

    Returns:
        (T, d).
    """
    count = experts.down_proj.shape[0]
    routed = torch.zeros((states.shape[0], count), dtype=weights.dtype).scatter(1, chosen, weights)
    inner = _each(experts, states[None], "gate_up_proj" if experts.has_gate else "up_proj")
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outer = _each(experts, inner, "down_proj")
    if experts.has_post_expert_norm:
        outer = experts.post_expert_norm(outer)
    return (outer * routed.t()[..., None]).sum(0).to(states.dtype)


def _each(experts: Any, states: Tensor, name: str) -> Tensor:
    """Apply the linear layer ``name`` of every expert to states (1 or E, T, d_in). Returns (E, T, d_out)."""
    weight: Tensor = getattr(experts, name)
    out = torch.matmul(states, weight if experts.is_transposed else weight.transpose(1, 2))
    return out + getattr(experts, f"{name}_bias")[:, None] if experts.has_bias else out


ALL_EXPERTS_FUNCTIONS.register(_NAME, _dense)
