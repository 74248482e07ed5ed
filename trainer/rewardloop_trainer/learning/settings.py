"""Settings that several kinds of training share. Imports no torch, so that `--help` is quick."""

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


class OfflineSettings(BaseModel):
    """The optimizer steps of learning from what people said, with the live policy as the frozen reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_share: float = Field(0.1, ge=0, le=1, description="of all steps; then linear to 0")
    clip_norm: float = Field(1.0, gt=0)
    max_steps: int = Field(0, ge=0, description="most optimizer steps of a round; 0: no bound")
    micro_batch_tokens: int = Field(8192, ge=1, description="padded tokens in one forward pass")
    checkpoint_every_steps: int = Field(50, ge=0, description="0: never")
