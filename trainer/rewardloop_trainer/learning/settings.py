"""Settings that several kinds of training share. Imports no torch, for a fast --help."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class LearnerSettings(BaseModel):
    """How a model is loaded to be trained, under the same names for reward models, supervised training and policies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device to train on; auto: a GPU if there is one"
    )
    weights: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of the weights in training; adapters and score heads stay in float32"
    )
    computation: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="type of matrix products in training; auto: that of the weights; bfloat16 with weights float32 is "
        "autocast: what learns, its gradients and the optimizer stay in float32",
    )
    tf32: bool = Field(
        False, description="let a GPU round the factors of float32 matrix products to TF32 in training, which is faster"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="implementation of the attention in training; auto: sdpa if the architecture has it"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute each layer's activations again in the backward pass: less memory, a third more time"
    )
    method: Literal["full", "lora"] = Field("full", description="which weights learn: all of them, or adapters")
    lora: LoraSettings = LoraSettings.model_validate({})
    frozen_layers: int = Field(0, ge=0, description="lowest layers that do not learn, with the embeddings below them")
    quantised_base: Literal["none", "8bit", "4bit"] = Field(
        "none", description="with method lora on a GPU: hold the frozen weights quantised (needs bitsandbytes)"
    )

    @model_validator(mode="after")
    def _computes_as_exactly_as_its_weights_allow(self) -> Self:
        if self.computation == "float32" and self.weights == "bfloat16":
            raise ValueError("computation float32 needs weights float32: bfloat16 ones are rounded already")
        return self

    @model_validator(mode="after")
    def _quantises_frozen_weights_alone(self) -> Self:
        if self.quantised_base != "none" and self.method != "lora":
            raise ValueError("quantised_base needs method lora: quantised weights cannot learn")
        return self


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

    def rate_for(self, parameters: int, *, are_adapters: bool = False) -> float:
        """Return the learning rate for so many parameters that learn, which may be those of adapters."""
        if self.learning_rate is not None:
            return self.learning_rate
        if are_adapters:
            return LORA_RATE
        return LARGE_FULL_RATE if parameters >= _LARGE_PARAMETERS else FULL_RATE
