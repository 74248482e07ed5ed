"""Settings of learning from a policy's own responses. Imports no torch, for a fast --help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rewardloop_trainer.learning.settings import ONLINE_RATES, LoraSettings


class CriticSettings(BaseModel):
    """PPO's value function."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trunk: Literal["shared", "separate"] = Field(
        "shared", description="the layers below the value head: the policy's own, or a copy of them"
    )
    learning_rate: float = Field(1e-4, gt=0, description="learning rate of the value head")
    coefficient: float = Field(0.1, ge=0, description="weight of the value loss beside the policy's loss")
    clip: float = Field(0.2, gt=0, description="how far a value may move from the rollout's value in one update")
    warmup_steps: int = Field(2, ge=0, description="first steps in which only the critic learns")
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")


class RewardShaping(BaseModel):
    """How calibrated scores become rewards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    caution: float = Field(0.0, ge=0, description="reward = score - caution * spread of the score heads")
    normalise: bool = Field(
        False,
        description="subtract the running mean and divide by the running deviation of the reward version's scores",
    )
    missing_end_penalty: float = Field(
        1.0, ge=0, description="subtracted from the reward of a response that was cut off before its end token"
    )
    empty_score: float = Field(-3.0, description="score of an empty response, which the reward model cannot score")


class VllmSettings(BaseModel):
    """The vLLM server that samples. `online/vllm_sampler.py` says how to start one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field("", description="base URL of the server, http://host:8000")
    name: str = Field("rewardloop", min_length=1, description="this trainer's name in the names of its adapters")
    api_key_file: Path | None = Field(None, description="file with the key to show to the server; none: no key")
    directory: Path | None = Field(
        None,
        description="directory for adapters that trainer and server both see by this path; none: one beside the "
        "checkpoints",
    )
    parallel: int = Field(64, ge=1, description="prompts that are sampled at once")
    timeout_s: float = Field(600.0, gt=0, description="deadline of one reply")


def _without_parentheses(value: object) -> object:
    """Accept a tuple as --help prints it, "(0.5, 1.0)" or "(1.0,)", which the command line splits at its commas."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        return value
    parts = [part.strip(" ()") if isinstance(part, str) else part for part in value]
    return [part for part in parts if part != ""]


Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class OnlineSettings(BaseModel):
    """How one round of learning from a policy's own responses runs: sample, score, learn, repeat.

    The defaults suit a model of some hundred million parameters or more; a tiny one needs a larger learning rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(50, ge=1, description="steps of sampling, scoring and learning")
    prompts: int = Field(32, ge=1, description="prompts in one step")
    responses: int = Field(
        4, ge=1, description="responses to each prompt; algorithms that compare responses need 2 or more"
    )
    max_new_tokens: int = Field(64, ge=1, description="most tokens of a response")
    temperatures: Annotated[tuple[Temperature, ...], BeforeValidator(_without_parentheses)] = Field(
        (1.0,), min_length=1, description="sampling temperatures; the steps take them in turn"
    )
    epochs: int = Field(1, ge=1, description="how often each response is learned from")
    minibatch: int = Field(64, ge=1, description="responses in one optimizer step; two make a pair")
    learning_rate: float | None = Field(None, gt=0, description=f"none: {ONLINE_RATES}")
    weight_decay: float = Field(0.0, ge=0)
    warmup_share: float = Field(
        0.05, ge=0, le=1, description="share of the steps in which the rate rises; it then falls linearly to 0"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradients")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens in one forward pass, padding included")
    weights: Literal["full", "lora"] = Field(
        "full", description="which weights learn; lora adapters are merged at the end"
    )
    lora: LoraSettings = LoraSettings.model_validate({})

    beta: float = Field(
        0.05,
        ge=0,
        description="reward that a nat of KL to the reference costs; for online-dpo the beta of its loss when it is "
        "set here above 0, otherwise online-dpo uses the beta of dpo",
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="KL to the reference, in nats per response, above which beta rises and below which it falls, to no "
        "less than it was set to; none: beta stays fixed",
    )
    kl_horizon: float | None = Field(
        None,
        gt=0,
        description="responses over which a KL that is off its target changes beta by 20%; none: a tenth of the run's",
    )
    max_kl: float | None = Field(
        None,
        gt=0,
        description="most mean KL to the reference, in nats per response: a step that goes beyond it is taken back, "
        "and the run ends there; none: 1.5 times kl_target if that is set, and at most 0.8 times gate.max_anchor_kl",
    )
    kl_estimator: Literal["k1", "k3"] = Field("k1", description="estimator of the KL per token in PPO's reward")
    clip: float = Field(0.2, gt=0, lt=1, description="how far below 1 a probability ratio still counts")
    clip_above: float = Field(0.2, gt=0, description="how far above 1 a probability ratio still counts")
    max_update_kl: float = Field(
        0.1, gt=0, description="nats per token between rollout and learning policy at which an update ends early"
    )
    scale_groups: bool = Field(
        False, description="GRPO divides advantages by the group's deviation, which moves the optimum"
    )
    sampler: Literal["local", "vllm"] = Field(
        "local", description="where answers are sampled: in this process, or on a vLLM server (needs weights lora)"
    )
    vllm: VllmSettings = VllmSettings.model_validate({})
    overlong_tokens: int = Field(
        16, ge=0, description="DAPO: last tokens before the maximum, over which a penalty grows from 0 to 1; 0: none"
    )
    max_batches: int = Field(
        3, ge=1, description="DAPO: most batches sampled in a step to replace prompts whose responses score alike"
    )
    max_age: int = Field(1, ge=0, description="most steps by which the weights that sampled may be older")
    most_importance: float = Field(
        2.0, ge=1, description="upper bound of the importance weight of a token, learner's to sampler's probability"
    )
    max_sampler_kl: float = Field(
        0.02,
        gt=0,
        description="nats per token between sampler and learner at which the run stops; weights that are n steps older "
        "may differ by n times max_update_kl more",
    )
    human_share: float = Field(0.25, ge=0, lt=1, description="online DPO: share of the pairs that people judged")

    rewards: RewardShaping = RewardShaping.model_validate({})
    critic: CriticSettings = CriticSettings.model_validate({})
    checkpoint_every_steps: int = Field(5, ge=0, description="steps between two checkpoints; 0: none")

    def rate_for(self, parameters: int, *, are_adapters: bool) -> float:
        """Return the rate that was set, or the usual one for so many of the policy's parameters that learn."""
        return self.learning_rate or ONLINE_RATES.of(parameters, are_adapters=are_adapters)

    @property
    def beta_horizon(self) -> float:
        """Responses over which beta adapts."""
        return self.kl_horizon or self.steps * self.prompts * self.responses / 10

    @model_validator(mode="after")
    def _can_steer_its_kl(self) -> Self:
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("online.kl_target multiplies online.beta, which must then be above 0")
        if self.kl_target is not None and self.max_kl is not None and self.max_kl < self.kl_target:
            raise ValueError("online.max_kl ends a run, so that it must not be below online.kl_target")
        return self

    @model_validator(mode="after")
    def _can_reach_its_sampler(self) -> Self:
        if self.sampler == "vllm":
            if self.weights != "lora":
                raise ValueError("online.sampler vllm is given adapters only: set online.weights to lora")
            if urlsplit(self.vllm.url).scheme not in ("http", "https") or not urlsplit(self.vllm.url).hostname:
                raise ValueError("online.sampler vllm needs online.vllm.url, such as http://127.0.0.1:8000")
        return self
