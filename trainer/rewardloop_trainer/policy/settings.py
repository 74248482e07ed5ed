"""Settings of a policy, of its training and of its gate. Imports no torch, for a fast --help."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardloop.formats.vocabulary import ONLINE_ALGORITHMS, AlgorithmChoice
from rewardloop_trainer.learning.settings import LearnerSettings
from rewardloop_trainer.policy.check_settings import PolicyChecks
from rewardloop_trainer.policy.offline_settings import DpoSettings, KtoSettings, OrpoSettings, SimpoSettings
from rewardloop_trainer.policy.online_registry import ONLINE
from rewardloop_trainer.policy.online_settings import OnlineSettings


class PolicyGateLimits(BaseModel):
    """Limits that a candidate must keep on held-out prompts, beside winning more often than it loses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(
        400, ge=1, description="most held-out prompts that both policies answer; fewer if they decide earlier"
    )
    least_prompts: int = Field(50, ge=2, description="held-out prompts below which the gate decides nothing")
    responses: int = Field(4, ge=1, le=64, description="responses of each policy to each prompt")
    max_new_tokens: int = Field(64, ge=1, description="most tokens of a response")
    judge: str = Field(
        "own",
        pattern=r"^(own|live|version:[0-9]+)$",
        description="who decides which response wins: own (a reward model of other signals, trained for it), live "
        "(the one that serves, and may have trained the policy) or version:3 (one that is warm on the server)",
    )
    judge_version: str = Field("", description="the same as judge version:N; empty: what judge says")
    earlier_version: bool = Field(
        True,
        description="whether the reward version before the live one, if there is one, may refuse: a policy is not "
        "published if that version is shown to like it less than the live policy; a version that taught the live "
        "policy is passed over for the one before it",
    )
    least_win_rate: float = Field(0.5, ge=0, lt=1, description="the win rate must be above it")
    least_win_rate_lower: float = Field(0.5, ge=0, lt=1, description="the win rate's lower bound must be above it")
    alpha: float = Field(
        0.04, gt=0, lt=0.5, description="probability with which a policy no better than the live one passes the gate"
    )
    anchor: str = Field(
        "",
        pattern=r"^[0-9]*$",
        description="policy version that every round is held to and from which drift is measured; empty: the one that "
        "the live version names, or the first of its line. Naming one begins a new budget, by a person's decision",
    )
    max_anchor_kl: float = Field(30.0, gt=0, description="most mean KL to the anchor policy, in nats per response")
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
        1.5, gt=0, description="most perplexity of held-out texts that people approved, as a ratio to the live policy's"
    )

    @property
    def judged_by(self) -> Literal["own", "live", "version"]:
        """Who decides which response wins."""
        if self.judge_version or self.judge.startswith("version:"):
            return "version"
        return "own" if self.judge == "own" else "live"

    @property
    def judging_version(self) -> str:
        """The reward version that judges, if one is named."""
        return self.judge_version or (self.judge.partition(":")[2] if self.judged_by == "version" else "")


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
    least_people: int = Field(
        20, ge=2, description="people without whom nothing is decided; signals without an annotator count as one person"
    )
    most_per_person: int = Field(50, ge=1, description="most preferences of one annotator whose mean is that person's")
    undecided: Literal["keep", "promote"] = Field(
        "keep", description="what an undecided test leads to: keep the live version, or promote the new one"
    )
    poll_s: float = Field(5.0, gt=0, description="seconds between two looks at the preferences")


class PolicySettings(DpoSettings, LearnerSettings):
    """How a policy learns, and what it must pass.

    The settings of DPO are fields of this class, so that ``policy.beta`` and the like name them on the command line.
    Code that trains takes them as `dpo`.
    """

    algorithm: AlgorithmChoice = Field(
        "auto",
        description="dpo, simpo and orpo learn from people's choices, kto from their thumbs; auto is kto if thumbs "
        "outweigh choices, else dpo; the others learn from the policy's own responses, which the reward model "
        "scores",
    )
    reward_model: str = Field(
        "",
        description="reward model, or mixture of the server, that scores the policy's own responses and those of the "
        "gate; empty: reward",
    )
    most_person_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="most share of one annotator in the total weight of the signals, and with few annotators twice an "
        "equal share; 1: no cap",
    )
    most_source_share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="most share of one source other than people in the total weight, if people gave signals, too; "
        "1: no cap",
    )
    kto: KtoSettings = KtoSettings.model_validate({})
    simpo: SimpoSettings = SimpoSettings.model_validate({})
    orpo: OrpoSettings = OrpoSettings.model_validate({})
    online: OnlineSettings = OnlineSettings.model_validate({})
    gate: PolicyGateLimits = PolicyGateLimits.model_validate({})
    checks: PolicyChecks = PolicyChecks.model_validate({})
    live_test: LiveTestSettings = LiveTestSettings.model_validate({})

    @property
    def dpo(self) -> DpoSettings:
        """The settings of DPO alone."""
        return DpoSettings.model_validate({name: getattr(self, name) for name in DpoSettings.model_fields})

    @property
    def max_online_kl(self) -> float:
        """Most mean KL to the reference within a run of an online algorithm, in nats per response.

        Without a bound of its own, a run leaves some of the anchor's budget, because the gate measures other answers.
        """
        online = self.online
        if online.max_kl is not None:
            return online.max_kl
        near = math.inf if online.kl_target is None else 1.5 * online.kl_target
        return min(near, 0.8 * self.gate.max_anchor_kl)

    @property
    def passes(self) -> int:
        """How often a run may learn from one signal."""
        epochs = {"dpo": self.epochs, "kto": self.kto.epochs, "simpo": self.simpo.epochs, "orpo": self.orpo.epochs}
        return max(self.epochs, self.kto.epochs) if self.algorithm == "auto" else epochs.get(self.algorithm, 1)

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch of the algorithm."""
        match self.algorithm:
            case "dpo":
                return self.micro_batch_tokens
            case "kto" | "simpo" | "orpo" as name:
                settings: KtoSettings | SimpoSettings | OrpoSettings = getattr(self, name)
                return settings.micro_batch_tokens
            case "auto":
                return max(self.micro_batch_tokens, self.kto.micro_batch_tokens)
            case _:
                return self.online.micro_batch_tokens

    @property
    def trainer(self) -> Literal["sft", "dpo", "kto", "online"]:
        """What trains the policy, as far as memory goes: SimPO and ORPO have no reference, like supervised training."""
        match self.algorithm:
            case "dpo" | "auto":
                return "dpo"
            case "kto":
                return "kto"
            case "simpo" | "orpo":
                return "sft"
            case _:
                return "online"

    @model_validator(mode="after")
    def _gives_its_algorithm_enough_responses(self) -> Self:
        if self.online.kl_target is not None and self.algorithm in ONLINE_ALGORITHMS:
            has_kl = ONLINE[self.algorithm].has_kl_reward
            if not has_kl or (self.algorithm == "dapo" and "beta" not in self.online.model_fields_set):
                raise ValueError(f"online.kl_target steers the KL in the reward, and {self.algorithm} has none there")
        if self.online.weights == "lora" and (self.method != "full" or self.weights != "float32"):
            raise ValueError("method lora names the adapters of every algorithm: leave online.weights full with it")
        for name in ONLINE_ALGORITHMS:
            least = ONLINE[name].least_responses
            if self.algorithm == name and self.online.responses < least:
                raise ValueError(f"{name} compares responses to one prompt: online.responses must be {least} or more")
        return self
