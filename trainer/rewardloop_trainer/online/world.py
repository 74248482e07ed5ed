"""The processes that train one policy together: each samples and learns from its share, all take the same steps.

One process alone is a world of its own. Several are started by torchrun, which says in the environment who they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Part = TypeVar("Part")


class World:
    """This process among its equals; sums and gathers wait for all of them."""

    def __init__(self) -> None:
        is_shared = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if is_shared else 0
        self.size = dist.get_world_size() if is_shared else 1

    def mine(self, items: Sequence[Part]) -> Sequence[Part]:
        """Every ``size``-th item, from ``rank`` on."""
        return items[self.rank :: self.size]

    def gather(self, mine: Sequence[Part]) -> list[Part]:
        """All processes' parts, in the order that `mine` took them from."""
        if self.size == 1:
            return list(mine)
        parts: list[Sequence[Part] | None] = [None] * self.size
        dist.all_gather_object(parts, mine)
        whole = [cast(Part, None)] * sum(len(part or ()) for part in parts)
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part or ()
        return whole

    def sum(self, values: Tensor) -> Tensor:
        """Summed over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each parameter's gradient becomes the sum of all processes'."""
        if self.size == 1:
            return
        learning = list(parameters)
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in learning])
        dist.all_reduce(flat)
        sizes = [p.numel() for p in learning]
        for parameter, gradient in zip(learning, torch.split(flat, sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
