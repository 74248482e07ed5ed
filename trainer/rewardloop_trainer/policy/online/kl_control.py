"""How strongly a policy is held to its reference: a fixed coefficient, or one that steers the KL to a target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class KlControl:
    """beta of the reward ``score - beta * KL``. With ``target`` it adapts: Ziegler et al. 2019, section 2.2.

    ``target``: nats a sequence; None keeps beta. ``horizon``: sequences over which a constant excess of 20% or more
    would multiply beta by about exp(0.2). An excess beyond 20% counts as 20%, so that one bad batch cannot run away.
    """

    beta: float
    target: float | None = None
    horizon: float = 10_000.0

    def update(self, kl: float, sequences: int) -> None:
        """``kl``: mean of the last rollout, in nats a sequence; ``sequences``: how many it was measured on."""
        if self.target is not None:
            error = min(max(kl / self.target - 1.0, -0.2), 0.2)
            self.beta *= 1.0 + error * sequences / self.horizon
