"""What can be chosen about a reward model and its training; light, for it is read before torch is imported."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardloop_trainer.learning.settings import LoraSettings


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


class RewardHyperparameters(RewardTraining):
    """How a reward model is made and learns. A later version keeps its parent's heads, pooling and length."""

    base: str = Field("", description="Hugging Face directory or hub id of the first model, for an empty store")
    heads: int = Field(4, ge=1, description="score heads of a first model; their spread is the uncertainty")
    pooling: Literal["auto", "mean", "cls"] = Field("auto", description="of an encoder, in a first model")
    max_length: int = Field(512, ge=8, description="most tokens of a (prompt, response) pair, in a first model")
    method: Literal["full", "lora"] = Field("full", description="which weights learn")
    lora: LoraSettings = LoraSettings.model_validate({})
    delta: bool = Field(
        False, description="publish adapters and heads over an unchanged graph where there is one; for method lora"
    )
    precision: Literal["float32", "int8", "float16"] = Field(
        "float32", description="of the published graph, where it orders held-out pairs as float32 does"
    )
    length_control: float = Field(
        0.0, ge=0, le=1, description="share of the scores' dependence on log length that calibration takes back"
    )
    gate_tolerance: float = Field(0.02, ge=0, lt=1, description="held-out accuracy that noise may hide a loss of")

    @model_validator(mode="after")
    def _fits_its_method(self) -> Self:
        if self.delta and self.method != "lora":
            raise ValueError("delta needs method lora: other weights cannot be published over an unchanged graph")
        if self.averaged_runs > 1 and self.method == "lora":
            raise ValueError("averaged_runs above 1 needs method full: adapters of several runs have no average")
        return self
