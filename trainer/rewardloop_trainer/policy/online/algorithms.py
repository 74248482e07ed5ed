"""The algorithms by their names, and what they take from prompts and people's pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.policy.dpo_train import PolicyPair, encode_pairs
from rewardloop_trainer.policy.online.experience import Algorithm
from rewardloop_trainer.policy.online.grpo import Grpo
from rewardloop_trainer.policy.online.online_dpo import OnlineDpo
from rewardloop_trainer.policy.online.ppo import Ppo
from rewardloop_trainer.policy.online.rloo import Rloo
from rewardloop_trainer.policy.online_settings import AlgorithmName, OnlineSettings
from rewardloop_trainer.policy.rollouts import fitting_prompts
from rewardloop_trainer.policy.settings import PolicySettings


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


@dataclass(frozen=True, slots=True)
class Task:
    """What `train_online` is given beside a model and scores. ``prompts``: those that leave room for an answer."""

    algorithm: Algorithm
    settings: OnlineSettings
    prompts: Sequence[Prompt]
    human_pairs: Sequence[PolicyPair]


def task_of(
    name: AlgorithmName,
    settings: PolicySettings,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    seed: int,
) -> Task:
    """An answer gets at most half of the encoder's length. ``pairs``: for online DPO alone."""
    most = min(settings.online.max_new_tokens, encoder.max_length // 2)
    human = list(encode_pairs(encoder, pairs).pairs) if name == "online-dpo" else []
    random.Random(seed).shuffle(human)  # a run may end before it has seen them all
    return Task(
        algorithm_of(name, settings),
        settings.online.model_copy(update={"max_new_tokens": most}),
        fitting_prompts(encoder, prompts, most),
        human,
    )
