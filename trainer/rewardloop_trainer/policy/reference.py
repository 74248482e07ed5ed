"""The frozen policy that a learning one is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewardloop_trainer.data.computing.autocast import autocast_of, compute_in
from rewardloop_trainer.data.computing.shards import is_divided
from rewardloop_trainer.learning.model_load import divide_causal_lm


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference other than the policy that training starts from.

    Attributes:
        version: Its name in messages.
        digest: What identifies its weights. A checkpoint of a run with another reference is not taken up.
        load: Loads it as a causal LM in float32. It has the vocabulary of the policy that learns.
    """

    version: str
    digest: str
    load: Callable[[], Any]

    def beside(self, policy: Any) -> Any:
        """Load it to compute as a policy that learns does, so that rounding does not tell them apart.

        It computes under autocast, and is divided among the processes, if the policy is.
        """
        model = self.load()
        for module in (model, model.base_model):
            compute_in(module, autocast_of(policy))
        if is_divided(policy):
            divide_causal_lm(model, policy.device)
        return model
