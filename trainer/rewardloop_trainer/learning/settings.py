"""Settings that several kinds of training share. Imports no torch, for a fast --help."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# The usual rates: adapters need ten to a hundred times the rate of full weights, and large models less than small ones.
LORA_RATE = 1e-4
FULL_RATE = 1e-5
LARGE_FULL_RATE = 1e-6
_LARGE_PARAMETERS = 1_000_000_000


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
    learning_rate: float | None = Field(
        None, gt=0, description="none: 1e-5, and 1e-6 for a model of a billion parameters or more"
    )
    weight_decay: float = Field(0.0, ge=0)
    warmup_share: float = Field(
        0.1, ge=0, le=1, description="share of the steps in which the rate rises; it then falls linearly to 0"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradients")
    max_steps: int = Field(0, ge=0, description="most optimizer steps of a round; 0: no limit")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens in one forward pass, padding included")
    checkpoint_every_steps: int = Field(50, ge=0, description="steps between two checkpoints; 0: none")

    def rate_for(self, parameters: int) -> float:
        """Return the learning rate for a model of so many parameters, all of which learn."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LARGE_FULL_RATE if parameters >= _LARGE_PARAMETERS else FULL_RATE
