"""What can be chosen about learning from a policy's own answers; light, for it is read before torch is imported."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rewardloop_trainer.learning.settings import LoraSettings

AlgorithmName = Literal["ppo", "grpo", "rloo", "online-dpo"]


class CriticSettings(BaseModel):
    """PPO's value function."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trunk: Literal["shared", "separate"] = Field("shared", description="its layers: the policy's, or a copy of them")
    learning_rate: float = Field(1e-4, gt=0, description="of the value head")
    coefficient: float = Field(0.1, ge=0, description="of the value loss beside the policy's")
    clip: float = Field(0.2, gt=0, description="how far a value may move from that of the rollout in one update")
    warmup_steps: int = Field(2, ge=0, description="first steps that teach the critic alone")
    gamma: float = Field(1.0, gt=0, le=1, description="discount a token")
    lam: float = Field(0.95, ge=0, le=1, description="of generalised advantage estimation")


class RewardShaping(BaseModel):
    """From calibrated scores to rewards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    caution: float = Field(0.0, ge=0, description="reward = score - caution * spread of the score heads")
    normalise: bool = Field(False, description="by running mean and deviation, begun anew with each reward version")
    missing_end_penalty: float = Field(1.0, ge=0, description="taken off an answer that did not come to its end")
    empty_score: float = Field(-3.0, description="score of an empty answer, which the reward model cannot score")


class OnlineSettings(BaseModel):
    """How one round of PPO, GRPO, RLOO or online DPO runs: sample, score, learn, again.

    The defaults suit a model of some hundred million parameters or more; a tiny one needs a larger learning rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(50, ge=1, description="of sampling, scoring and learning")
    prompts: int = Field(32, ge=1, description="prompts a step")
    responses: int = Field(4, ge=1, description="answers to each prompt; groups need 2 or more")
    max_new_tokens: int = Field(64, ge=1)
    temperatures: tuple[float, ...] = Field((1.0,), min_length=1, description="of sampling; steps take turns")
    epochs: int = Field(1, ge=1, description="times that each answer is learned from")
    minibatch: int = Field(64, ge=1, description="answers in one optimizer step (two make a pair)")
    learning_rate: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_share: float = Field(0.05, ge=0, le=1, description="of all steps; then linear to 0")
    clip_norm: float = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(8192, ge=1, description="padded tokens in one forward pass")
    weights: Literal["full", "lora"] = Field("full", description="which weights learn; lora is merged at the end")
    lora: LoraSettings = LoraSettings.model_validate({})

    beta: float = Field(0.05, ge=0, description="reward given for a nat of KL to the live policy")
    kl_target: float | None = Field(None, gt=0, description="nats an answer that beta is steered to; none: beta stays")
    kl_horizon: float = Field(10_000.0, gt=0, description="answers over which beta adapts")
    kl_estimator: Literal["k1", "k3"] = Field("k1", description="of the KL a token in the reward (PPO)")
    clip: float = Field(0.2, gt=0, lt=1, description="how far below 1 a probability ratio counts")
    clip_above: float = Field(0.2, gt=0, description="how far above 1")
    max_update_kl: float = Field(0.1, gt=0, description="nats a token from the rollout at which an update ends early")
    scale_groups: bool = Field(False, description="GRPO: divide by the group's deviation, which moves the optimum")
    max_age: int = Field(1, ge=0, description="steps by which the weights that sampled an answer may be older")
    most_importance: float = Field(2.0, ge=1, description="bound of the weight of an older policy's token")
    human_share: float = Field(0.25, ge=0, lt=1, description="online DPO: share of pairs that people judged")

    rewards: RewardShaping = RewardShaping.model_validate({})
    critic: CriticSettings = CriticSettings.model_validate({})
    checkpoint_every_steps: int = Field(5, ge=0, description="0: never")
