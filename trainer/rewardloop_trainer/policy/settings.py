"""What can be chosen about a policy, its training and its gate; light, for it is read before torch is imported."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardloop_trainer.learning.settings import OfflineSettings
from rewardloop_trainer.policy.online_settings import OnlineSettings


class DpoSettings(OfflineSettings):
    """How one round trains the policy on preferences."""

    loss: Literal["sigmoid", "robust", "ipo", "hinge"] = "sigmoid"
    beta: float = Field(0.1, gt=0, description="strength of the pull towards the live policy")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken to be flipped")
    length_normalised: bool = Field(False, description="log-probabilities per token; IPO always does that")
    sft_weight: float = Field(0.1, ge=0, description="of the chosen response's loss per token; holds it up (RPO)")
    batch_pairs: int = Field(32, ge=1, description="pairs in one optimizer step")
    seed: int = 0


class KtoSettings(OfflineSettings):
    """How one round trains the policy on thumbs and ratings."""

    beta: float = Field(0.1, gt=0, description="strength of the pull towards the live policy")
    batch_thumbs: int = Field(32, ge=2, description="thumbs in one optimizer step; they estimate how far it has moved")


class PolicyGateLimits(BaseModel):
    """What a candidate must keep to on held-out prompts, beside winning more often than not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(200, ge=1, description="most held-out prompts that are answered")
    responses: int = Field(4, ge=1, le=64, description="answers of each policy to each prompt")
    max_new_tokens: int = Field(64, ge=1)
    judge_version: str = Field(
        "", description="reward version that decides who wins, warm on the server; empty: the one that training saw"
    )
    least_win_rate: float = Field(0.5, ge=0, lt=1, description="the win rate must be above it")
    least_win_rate_lower: float = Field(0.0, ge=0, lt=1, description="lower end of its 95% interval")
    max_kl: float = Field(30.0, gt=0, description="mean KL to the live policy, in nats a sequence")
    least_length_ratio: float = Field(0.5, ge=0, le=1, description="mean tokens of an answer over the live policy's")
    max_length_ratio: float = Field(2.0, ge=1)
    max_empty_share: float = Field(0.02, ge=0, le=1)
    max_more_truncated: float = Field(0.1, ge=0, le=1, description="share of endless answers above the live policy's")
    least_distinct_ratio: float = Field(0.5, ge=0, le=1, description="distinct-2 over the live policy's")
    max_more_repeated: float = Field(0.2, ge=0, le=1, description="share of repeated phrases above the live policy's")
    max_perplexity_ratio: float = Field(
        1.5, gt=0, description="perplexity of people's own held-out texts over the live policy's"
    )


class LiveTestSettings(BaseModel):
    """How people's own preferences decide between a version that passed the gate and the live one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(0.0, ge=0, lt=1, description="of the traffic that compares both; 0: promoted untested")
    alpha: float = Field(0.05, gt=0, lt=1, description="chance of a wrong decision, however often it is looked at")
    max_preferences: int = Field(1_000, ge=1, description="the test ends undecided after so many")
    max_hours: float = Field(168.0, gt=0, description="the test ends undecided after so long")
    most_per_person: int = Field(50, ge=1, description="preferences of one annotator that count")
    undecided: Literal["keep", "promote"] = Field("keep", description="keep the live version, or promote the new one")
    poll_s: float = Field(5.0, gt=0, description="how often the preferences are looked at")


class PolicySettings(DpoSettings):
    """How a policy learns, and what it must pass. What stands here is of DPO, online DPO's loss and beta included."""

    algorithm: Literal["dpo", "kto", "ppo", "grpo", "rloo", "online-dpo"] = Field(
        "dpo",
        description="dpo learns from people's choices, kto from their thumbs; the others from own answers that the "
        "reward model scores",
    )
    kto: KtoSettings = KtoSettings.model_validate({})
    online: OnlineSettings = OnlineSettings.model_validate({})
    gate: PolicyGateLimits = PolicyGateLimits.model_validate({})
    live_test: LiveTestSettings = LiveTestSettings.model_validate({})

    @model_validator(mode="after")
    def _groups_have_answers_to_compare(self) -> Self:
        if self.algorithm in ("grpo", "rloo", "online-dpo") and self.online.responses < 2:
            raise ValueError(f"{self.algorithm} compares answers to one prompt: online.responses must be 2 or more")
        return self
