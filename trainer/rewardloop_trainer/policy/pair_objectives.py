"""The objectives of learning from pairs: a loss for each pair, and the implicit reward of its two responses.

In each function ``policy`` and ``reference`` are (pairs, 2), log-probabilities of chosen and rejected response, summed
over tokens, in nats; ``tokens`` is (pairs, 2), numbers of tokens with the end token; ``strength`` is (pairs,), how
strong each preference is, from 0 (not said) to 1. Only DPO's loss depends on the strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from rewardloop_trainer.policy.losses.dpo import pair_losses
from rewardloop_trainer.policy.losses.orpo import log_odds, orpo
from rewardloop_trainer.policy.losses.simpo import simpo
from rewardloop_trainer.policy.offline_settings import DpoSettings, OrpoSettings, SimpoSettings

PairSettings: TypeAlias = DpoSettings | SimpoSettings | OrpoSettings


class PairObjective(Protocol):
    """What a pair teaches."""

    def losses(self, policy: Tensor, reference: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
        """The loss of each pair, (pairs,), not reduced."""
        ...

    def rewards(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        """The implicit reward of each response, (pairs, 2), for accuracy and margin."""
        ...


@dataclass(frozen=True, slots=True)
class Dpo:
    """The reward is beta * log(pi / ref)."""

    settings: DpoSettings

    def losses(self, policy: Tensor, reference: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
        return pair_losses(policy, reference, tokens, self.settings, self.settings.margin * strength)

    def rewards(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        return self.settings.beta * (policy - reference)


@dataclass(frozen=True, slots=True)
class Simpo:
    """The reward is beta times the mean log-probability of a token; the reference plays no part."""

    settings: SimpoSettings

    def losses(self, policy: Tensor, reference: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
        return simpo(policy, tokens, self.settings.beta, self.settings.margin)

    def rewards(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        return self.settings.beta * policy / tokens


@dataclass(frozen=True, slots=True)
class Orpo:
    """The reward is the log odds of a response; the reference plays no part."""

    settings: OrpoSettings

    def losses(self, policy: Tensor, reference: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
        return orpo(policy, tokens, self.settings.odds_weight)

    def rewards(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        return log_odds(policy, tokens)


def objective_of(settings: PairSettings) -> PairObjective:
    """Return the objective of the algorithm that the settings are of."""
    match settings:
        case SimpoSettings():
            return Simpo(settings)
        case OrpoSettings():
            return Orpo(settings)
        case DpoSettings():
            return Dpo(settings)
