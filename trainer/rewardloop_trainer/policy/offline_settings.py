"""Settings of learning from what people judged: DPO and KTO. Imports no torch, for a fast --help."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rewardloop_trainer.learning.settings import OfflineSettings


class PreferenceLoss(BaseModel):
    """The loss of a pair of responses, in DPO and in online DPO."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Literal["sigmoid", "robust", "ipo", "hinge"] = "sigmoid"
    beta: float = Field(
        0.1,
        gt=0,
        description="how strongly the policy is held to the reference; online-dpo uses it unless online.beta is set",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels that are assumed to be flipped")
    length_normalised: bool = Field(
        False, description="divide each response's log-probability by its tokens; ipo always does so"
    )
    sft_weight: float = Field(
        0.1, ge=0, description="weight of the chosen response's loss per token, which keeps it probable (RPO)"
    )


class DpoSettings(PreferenceLoss, OfflineSettings):
    """How one round trains the policy on preference pairs."""

    margin: float = Field(
        1.0,
        ge=0,
        description="nats by which the chosen response's implicit reward should win at least if the preference is the "
        "strongest; less in proportion to its strength, and 0 without one",
    )
    batch_pairs: int = Field(32, ge=1, description="pairs in one optimizer step")
    seed: int = 0


class SimpoSettings(OfflineSettings):
    """How one round trains the policy on preference pairs by SimPO."""

    beta: float = Field(2.0, gt=0, description="scale of the reward, the mean log-probability of a response's tokens")
    margin: float = Field(
        1.0, ge=0, description="by how much the chosen response's reward should exceed the other's (gamma of the paper)"
    )
    batch_pairs: int = Field(32, ge=1, description="pairs in one optimizer step")


class OrpoSettings(OfflineSettings):
    """How one round trains the policy on preference pairs by ORPO."""

    odds_weight: float = Field(
        0.1, gt=0, description="weight of the odds of the two responses beside the chosen one's loss (lambda)"
    )
    batch_pairs: int = Field(32, ge=1, description="pairs in one optimizer step")


class KtoSettings(OfflineSettings):
    """How one round trains the policy on thumbs and ratings."""

    beta: float = Field(0.1, gt=0, description="how strongly the policy is held to the reference")
    batch_thumbs: int = Field(
        32, ge=2, description="thumbs in one optimizer step; they also estimate how far the policy has moved"
    )
