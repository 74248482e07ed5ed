"""Prepares a run of an online algorithm: the algorithm by its name, its prompts and people's pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from rewardloop.formats.text import Encoder
from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.policy.dpo_train import PolicyPair, encode_pairs
from rewardloop_trainer.policy.offline_settings import DpoSettings
from rewardloop_trainer.policy.online.experience import Algorithm
from rewardloop_trainer.policy.online_registry import ONLINE
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rollouts import fitting_prompts
from rewardloop_trainer.policy.settings import PolicySettings


@dataclass(frozen=True, slots=True)
class OnlineTask:
    """The task that `train_online` works on.

    Attributes:
        algorithm: Turns samples into experience, and has the loss.
        settings: The settings of the loop.
        prompts: Prompts that leave room for a response.
        human_pairs: Pairs that people judged, for algorithms that learn from pairs.
    """

    algorithm: Algorithm
    settings: OnlineSettings
    prompts: Sequence[Prompt]
    human_pairs: Sequence[PolicyPair] = ()


def algorithm_of(name: OnlineAlgorithm, online: OnlineSettings, dpo: DpoSettings | None = None) -> Algorithm:
    """Build the algorithm with its own part of the settings; without ``dpo``, DPO's defaults."""
    entry = ONLINE[name]
    module, _, implementation = entry.implementation.partition(":")
    build = getattr(import_module(f"{__package__}.{module}"), implementation)
    algorithm: Algorithm = build(entry.settings(online, dpo or DpoSettings.model_validate({})))
    return algorithm


def task_of(
    name: OnlineAlgorithm,
    settings: PolicySettings,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    seed: int,
) -> OnlineTask:
    """The task of one run.

    A response gets at most half of the encoder's maximum length. Prompts that leave no room for one are left out.

    Args:
        name: The algorithm.
        settings: The settings of the policy.
        encoder: The policy's tokenizer and text layout.
        prompts: Prompts to respond to.
        pairs: Pairs that people judged; used only by algorithms that learn from them.
        seed: The seed of the order of the pairs.
    """
    most = min(settings.online.max_new_tokens, encoder.max_length // 2)
    human = list(encode_pairs(encoder, pairs).pairs) if ONLINE[name].takes_human_pairs else []
    random.Random(seed).shuffle(human)  # a run may end before it has seen all of them
    online = settings.online.model_copy(update={"max_new_tokens": most, "max_kl": settings.max_online_kl})
    return OnlineTask(
        algorithm_of(name, online, settings.dpo),
        online,
        fitting_prompts(encoder, prompts, most),
        human,
    )
