"""Settings that several kinds of training share. Imports no torch, for a fast --help."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LoraSettings(BaseModel):
    """Low-rank adapters on linear layers, merged into the weights before export unless a delta is published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1, description="the adapters' product is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    modules: Literal["query_value", "attention", "all"] = Field(
        "query_value",
        description="which linear layers: query and value of the attention, all of the attention, or all",
    )


class OfflineSettings(BaseModel):
    """The optimizer steps of learning from what people judged, with the live policy as the frozen reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_share: float = Field(
        0.1, ge=0, le=1, description="share of the steps in which the rate rises; it then falls linearly to 0"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradients")
    max_steps: int = Field(0, ge=0, description="most optimizer steps of a round; 0: no limit")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens in one forward pass, padding included")
    checkpoint_every_steps: int = Field(50, ge=0, description="steps between two checkpoints; 0: none")
