"""The coefficient of the KL in the reward: fixed, or adapted so that the KL stays near a target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class KlControl:
    """beta of the reward ``score - beta * KL``.

    Source of the adaptation: Ziegler et al. 2019, section 2.2.

    Attributes:
        beta: The coefficient, in reward per nat.
        target: Wanted KL in nats per sequence; None keeps beta fixed.
        horizon: Sequences over which a KL that exceeds its target by 20% or more multiplies beta by about exp(0.2). A
            larger excess counts as 20%, so that one bad batch cannot change beta much. It is to be a small part of the
            run: a horizon beyond its end leaves beta nearly as it was.
    """

    beta: float
    target: float | None = None
    horizon: float = 10_000.0

    def update(self, kl: float, sequences: int) -> None:
        """Adapt beta to the last rollout, whose mean KL is ``kl`` nats per sequence over ``sequences`` sequences."""
        if self.target is not None:
            error = min(max(kl / self.target - 1.0, -0.2), 0.2)
            # A step with more sequences than the horizon has at most halves or doubles beta.
            self.beta *= min(max(1.0 + error * sequences / self.horizon, 0.5), 2.0)
