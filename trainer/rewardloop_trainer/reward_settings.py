"""What can be chosen about a reward model and its training; light, for it is read before torch is imported."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LoraSettings(BaseModel):
    """Low-rank adapters on linear layers of the trunk, merged into it before export unless a delta is published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    modules: Literal["query_value", "attention", "all"] = Field(
        "query_value",
        description="which linear layers: the attention's query and value, all of the attention's, or all",
    )


class RewardTraining(BaseModel):
    """How one round trains the reward model. The defaults suit full fine-tuning of a MiniLM-class encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(1, ge=1)
    averaged_runs: int = Field(1, ge=1, description="runs from one start on equal shares of the signals, averaged")
    learning_rate: float = Field(5e-5, gt=0)
    head_learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_share: float = Field(0.06, ge=0, le=1, description="of all steps; then linear to 0")
    clip_norm: float = Field(1.0, gt=0)
    sequences_per_step: int = Field(32, ge=2, description="two for each pair")
    micro_batch_tokens: int = Field(2048, ge=1, description="padded tokens in one forward pass")
    megabatch_steps: int = Field(8, ge=1, description="steps whose examples are sorted by length together")
    dropout: bool = False
    frozen_layers: int = Field(0, ge=0, description="lowest layers kept as they are, with the embeddings below them")
    over_length: Literal["truncate", "drop"] = "truncate"
    bootstrap: Literal["poisson", "bernoulli", "none"] = "poisson"
    length_balance: bool = Field(False, description="weigh pairs so that length says nothing about who won")
    pointwise_weight: float = Field(0.5, ge=0, description="of one thumb or rating beside one pair")
    tie_weight: float = Field(0.5, ge=0, description="of one tie beside one pair")
    centring: float = Field(0.01, ge=0)
    evaluate_every_steps: int = Field(0, ge=0, description="0: only at the end of each epoch")
    patience: int = Field(2, ge=1, description="evaluations without a lower held-out loss before it stops")
    checkpoint_every_steps: int = Field(50, ge=0, description="0: never")
    seed: int = 0
