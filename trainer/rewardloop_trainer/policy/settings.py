"""Settings of a policy, of its training and of its gate. Imports no torch, for a fast --help."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardloop.formats.vocabulary import ONLINE_ALGORITHMS, Algorithm
from rewardloop_trainer.learning.settings import LearnerSettings
from rewardloop_trainer.policy.offline_settings import DpoSettings, KtoSettings
from rewardloop_trainer.policy.online_registry import ONLINE
from rewardloop_trainer.policy.online_settings import OnlineSettings


class PolicyGateLimits(BaseModel):
    """Limits that a candidate must keep on held-out prompts, beside winning more often than it loses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(200, ge=1, description="most held-out prompts that both policies answer")
    responses: int = Field(4, ge=1, le=64, description="responses of each policy to each prompt")
    max_new_tokens: int = Field(64, ge=1, description="most tokens of a response")
    judge_version: str = Field(
        "",
        description="reward version that decides which response wins, warm on the server; empty: the one that serves",
    )
    least_win_rate: float = Field(0.5, ge=0, lt=1, description="the win rate must be above it")
    least_win_rate_lower: float = Field(
        0.0, ge=0, lt=1, description="the lower end of the win rate's 95% interval must be above it"
    )
    max_kl: float = Field(30.0, gt=0, description="most mean KL to the live policy, in nats per response")
    least_length_ratio: float = Field(
        0.5, ge=0, le=1, description="least mean tokens of a response, as a ratio to the live policy's"
    )
    max_length_ratio: float = Field(
        2.0, ge=1, description="most mean tokens of a response, as a ratio to the live policy's"
    )
    max_empty_share: float = Field(0.02, ge=0, le=1, description="most share of empty responses")
    max_more_truncated: float = Field(
        0.1, ge=0, le=1, description="how much the share of responses without an end may exceed the live policy's"
    )
    least_distinct_ratio: float = Field(
        0.5, ge=0, le=1, description="least distinct-2, as a ratio to the live policy's"
    )
    max_more_repeated: float = Field(
        0.2, ge=0, le=1, description="how much the share of repeated phrases may exceed the live policy's"
    )
    max_perplexity_ratio: float = Field(
        1.5, gt=0, description="most perplexity of held-out texts that people wrote, as a ratio to the live policy's"
    )


class LiveTestSettings(BaseModel):
    """How people's own preferences decide between a version that passed the gate and the live one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(
        0.0, ge=0, lt=1, description="share of the traffic that compares both versions; 0: promote without a test"
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="probability of a wrong decision, however often the preferences are looked at"
    )
    max_preferences: int = Field(1_000, ge=1, description="preferences after which the test ends undecided")
    max_hours: float = Field(168.0, gt=0, description="hours after which the test ends undecided")
    most_per_person: int = Field(50, ge=1, description="most preferences of one annotator that count")
    undecided: Literal["keep", "promote"] = Field(
        "keep", description="what an undecided test leads to: keep the live version, or promote the new one"
    )
    poll_s: float = Field(5.0, gt=0, description="seconds between two looks at the preferences")


class PolicySettings(DpoSettings, LearnerSettings):
    """How a policy learns, and what it must pass.

    The settings of DPO are fields of this class, so that ``policy.beta`` and the like name them on the command line.
    Code that trains takes them as `dpo`.
    """

    algorithm: Algorithm = Field(
        "dpo",
        description="dpo learns from people's choices, kto from their thumbs; the others from the policy's own "
        "responses, which the reward model scores",
    )
    kto: KtoSettings = KtoSettings.model_validate({})
    online: OnlineSettings = OnlineSettings.model_validate({})
    gate: PolicyGateLimits = PolicyGateLimits.model_validate({})
    live_test: LiveTestSettings = LiveTestSettings.model_validate({})

    @property
    def dpo(self) -> DpoSettings:
        """The settings of DPO alone."""
        return DpoSettings.model_validate({name: getattr(self, name) for name in DpoSettings.model_fields})

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch of the algorithm."""
        match self.algorithm:
            case "dpo":
                return self.micro_batch_tokens
            case "kto":
                return self.kto.micro_batch_tokens
            case _:
                return self.online.micro_batch_tokens

    @property
    def trainer(self) -> Literal["dpo", "kto", "online"]:
        """What trains the policy."""
        return self.algorithm if self.algorithm in ("dpo", "kto") else "online"

    @model_validator(mode="after")
    def _gives_its_algorithm_enough_responses(self) -> Self:
        if self.online.weights == "lora" and (self.method != "full" or self.weights != "float32"):
            raise ValueError("method lora names the adapters of every algorithm: leave online.weights full with it")
        for name in ONLINE_ALGORITHMS:
            least = ONLINE[name].least_responses
            if self.algorithm == name and self.online.responses < least:
                raise ValueError(f"{name} compares responses to one prompt: online.responses must be {least} or more")
        return self
