"""The algorithms by their names."""

from __future__ import annotations

from rewardloop_trainer.online.experience import Algorithm
from rewardloop_trainer.online.grpo import Grpo
from rewardloop_trainer.online.online_dpo import OnlineDpo
from rewardloop_trainer.online.ppo import Ppo
from rewardloop_trainer.online.rloo import Rloo
from rewardloop_trainer.online.settings import AlgorithmName
from rewardloop_trainer.policy_settings import PolicySettings


def algorithm_of(name: AlgorithmName, settings: PolicySettings) -> Algorithm:
    """Online DPO takes its loss and beta from the settings of DPO, the others theirs from ``settings.online``."""
    match name:
        case "ppo":
            return Ppo(settings.online)
        case "grpo":
            return Grpo(settings.online)
        case "rloo":
            return Rloo(settings.online)
        case "online-dpo":
            return OnlineDpo(settings)
