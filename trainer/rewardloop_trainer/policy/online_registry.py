"""The online algorithms: what each is built from and what it needs. Imports no torch, for a fast --help.

CONTRIBUTING.md lists the files to touch for a new algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop_trainer.policy.offline_settings import DpoSettings, PreferenceLoss
from rewardloop_trainer.policy.online_settings import CriticSettings, OnlineSettings


@dataclass(frozen=True, slots=True)
class PpoSettings:
    """PPO's part of the public settings; their descriptions are in `OnlineSettings` and `CriticSettings`."""

    clip: float
    clip_above: float
    kl_estimator: Literal["k1", "k3"]
    critic: CriticSettings

    @classmethod
    def of(cls, online: OnlineSettings, _: DpoSettings | None = None) -> PpoSettings:
        return cls(online.clip, online.clip_above, online.kl_estimator, online.critic)


@dataclass(frozen=True, slots=True)
class GrpoSettings:
    """GRPO's part of the public settings; their descriptions are in `OnlineSettings`."""

    clip: float
    clip_above: float
    scale_groups: bool

    @classmethod
    def of(cls, online: OnlineSettings, _: DpoSettings | None = None) -> GrpoSettings:
        return cls(online.clip, online.clip_above, online.scale_groups)


@dataclass(frozen=True, slots=True)
class RlooSettings:
    """RLOO's part of the public settings; their descriptions are in `OnlineSettings`."""

    clip: float
    clip_above: float
    most_importance: float

    @classmethod
    def of(cls, online: OnlineSettings, _: DpoSettings | None = None) -> RlooSettings:
        return cls(online.clip, online.clip_above, online.most_importance)


@dataclass(frozen=True, slots=True)
class OnlineDpoSettings:
    """Online DPO's part of the public settings: the loss of `DpoSettings`, with its own beta where one was set."""

    loss: PreferenceLoss

    @classmethod
    def of(cls, online: OnlineSettings, dpo: DpoSettings) -> OnlineDpoSettings:
        """The beta is `online.beta` if that was set explicitly and is above 0, otherwise `dpo.beta`.

        The default of `online.beta` is meant for rewards and would be wrong here, and a beta of 0 is none for DPO.
        """
        loss = {name: getattr(dpo, name) for name in PreferenceLoss.model_fields}
        if "beta" in online.model_fields_set and online.beta > 0:
            loss["beta"] = online.beta
        return cls(PreferenceLoss.model_validate(loss))


@dataclass(frozen=True, slots=True)
class ReinforcePpSettings:
    """REINFORCE++'s part of the public settings; their descriptions are in `OnlineSettings`."""

    clip: float
    clip_above: float
    kl_estimator: Literal["k1", "k3"]

    @classmethod
    def of(cls, online: OnlineSettings, _: DpoSettings | None = None) -> ReinforcePpSettings:
        return cls(online.clip, online.clip_above, online.kl_estimator)


@dataclass(frozen=True, slots=True)
class DrGrpoSettings:
    """Dr. GRPO's part of the public settings; their descriptions are in `OnlineSettings`."""

    clip: float
    clip_above: float
    max_new_tokens: int

    @classmethod
    def of(cls, online: OnlineSettings, _: DpoSettings | None = None) -> DrGrpoSettings:
        return cls(online.clip, online.clip_above, online.max_new_tokens)


@dataclass(frozen=True, slots=True)
class DapoSettings:
    """DAPO's part of the public settings, with the paper's values for those that were not set.

    Attributes:
        clip: How far below 1 a ratio counts.
        clip_above: How far above 1 a ratio counts.
        max_new_tokens: Most tokens of a response.
        overlong_tokens: Last tokens before the maximum, which cost more and more.
        has_kl: Whether the KL is subtracted from the reward.
    """

    clip: float
    clip_above: float
    max_new_tokens: int
    overlong_tokens: int
    has_kl: bool

    @classmethod
    def of(cls, online: OnlineSettings, _: DpoSettings | None = None) -> DapoSettings:
        """The upper bound is 0.28 and there is no KL, unless `online.clip_above` and `online.beta` were set."""
        is_set = online.model_fields_set
        above = online.clip_above if "clip_above" in is_set else 0.28
        overlong = min(online.overlong_tokens, online.max_new_tokens)
        return cls(online.clip, above, online.max_new_tokens, overlong, "beta" in is_set)


AlgorithmSettings: TypeAlias = (
    PpoSettings | GrpoSettings | RlooSettings | OnlineDpoSettings | ReinforcePpSettings | DrGrpoSettings | DapoSettings
)


@dataclass(frozen=True, slots=True)
class OnlineEntry:
    """One algorithm.

    Attributes:
        implementation: ``module:class`` below `policy.online`. `algorithm_of` imports it, since it needs torch.
        settings: Makes the algorithm's own settings from the public ones.
        least_responses: Fewest responses to a prompt that it can learn from; 2 where they are compared.
        has_critic: Whether a value function learns beside the policy.
        takes_human_pairs: Whether it also learns from pairs that people judged.
        has_kl_reward: Whether the KL is part of the reward, so that a target can steer its coefficient.
        resamples: Whether other prompts are sampled in place of those whose responses all have the same reward.
    """

    implementation: str
    settings: Callable[[OnlineSettings, DpoSettings], AlgorithmSettings]
    least_responses: int = 2
    has_critic: bool = False
    takes_human_pairs: bool = False
    has_kl_reward: bool = True
    resamples: bool = False


ONLINE: Mapping[OnlineAlgorithm, OnlineEntry] = {
    "ppo": OnlineEntry("ppo:Ppo", PpoSettings.of, least_responses=1, has_critic=True),
    "grpo": OnlineEntry("grpo:Grpo", GrpoSettings.of),
    "rloo": OnlineEntry("rloo:Rloo", RlooSettings.of),
    "online-dpo": OnlineEntry(
        "online_dpo:OnlineDpo", OnlineDpoSettings.of, takes_human_pairs=True, has_kl_reward=False
    ),
    "reinforce-pp": OnlineEntry("reinforce_pp:ReinforcePp", ReinforcePpSettings.of, least_responses=1),
    "dr-grpo": OnlineEntry("dr_grpo:DrGrpo", DrGrpoSettings.of),
    "dapo": OnlineEntry("dapo:Dapo", DapoSettings.of, resamples=True),
}
