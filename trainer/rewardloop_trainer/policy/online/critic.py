"""PPO's value function: the return that is still expected before each token of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rewardloop_trainer.data.completions import Completion, padded


class Critic(nn.Module):
    """A linear head, initialised to 0, on the last hidden states of the policy or of a trunk of its own."""

    def __init__(self, width: int, trunk: Any | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values (rows, columns) of hidden states (rows, columns, width), in float32 whatever the trunk's type is."""
        values: Tensor = self.head(states.float()).squeeze(-1)
        return values

    def states(self, rows: Sequence[Completion], pad_id: int) -> Tensor:
        """Hidden states (rows, columns, width) of its own trunk, aligned as those of `completions.forward`."""
        assert self.trunk is not None
        ids, first, _ = padded(rows, pad_id, self.head.weight.device)
        states: Tensor = self.trunk(input_ids=ids, use_cache=False).last_hidden_state[:, first:-1]
        return states
