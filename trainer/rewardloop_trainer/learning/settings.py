"""Settings that several kinds of training share. Imports no torch, for a fast --help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_SMALL_PARAMETERS = 100_000_000
_LARGE_PARAMETERS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class UsualRates:
    """Learning rates for who sets none: adapters need more than full weights, and large models less than small ones.

    Attributes:
        adapters: That of adapters, of any size.
        small: That of full weights, fewer than 100 million parameters.
        full: That of full weights, fewer than a billion parameters.
        large: That of more.
    """

    adapters: float
    small: float
    full: float
    large: float

    def of(self, parameters: int, *, are_adapters: bool) -> float:
        """The rate for so many parameters that learn, which may be those of adapters."""
        if are_adapters:
            return self.adapters
        if parameters >= _LARGE_PARAMETERS:
            return self.large
        return self.full if parameters >= _SMALL_PARAMETERS else self.small

    def __str__(self) -> str:
        small, full, large, adapters = (
            f"{rate:.0e}".replace("e-0", "e-") for rate in (self.small, self.full, self.large, self.adapters)
        )
        said = f"{small} for full weights"
        if full != small:
            said += f", {full} from 100 million parameters on"
        if large != full:
            said += f", {large} from a billion parameters on"
        return f"{said}, and {adapters} for adapters"


# Usual values of the field, of which one was measured here: MiniLM's figures in tests/bench/README.md are with 5e-5.
REWARD_RATES = UsualRates(adapters=1e-4, small=5e-5, full=1e-5, large=5e-6)
SFT_RATES = UsualRates(adapters=1e-4, small=2e-5, full=2e-5, large=1e-5)
OFFLINE_RATES = UsualRates(adapters=1e-4, small=1e-5, full=1e-5, large=1e-6)
ONLINE_RATES = UsualRates(adapters=1e-4, small=1e-6, full=1e-6, large=1e-6)


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

    shard: bool = Field(
        False,
        description="under torchrun: divide weights, gradients and the optimizer's moments among the processes (FSDP) "
        "instead of keeping them whole in each: less memory, more communication",
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
        if self.quantised_base != "none" and self.shard:
            raise ValueError("shard divides float weights: leave quantised_base none with it")
        return self


class OfflineSettings(BaseModel):
    """The optimizer steps of learning from what people judged, with a frozen reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, gt=0, description=f"none: {OFFLINE_RATES}")
    weight_decay: float = Field(0.0, ge=0)
    warmup_share: float = Field(
        0.1, ge=0, le=1, description="share of the steps in which the rate rises; it then falls linearly to 0"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradients")
    max_steps: int = Field(0, ge=0, description="most optimizer steps of a round; 0: no limit")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens in one forward pass, padding included")
    checkpoint_every_steps: int = Field(50, ge=0, description="steps between two checkpoints; 0: none")

    def rate_for(self, parameters: int, *, are_adapters: bool) -> float:
        """Return the rate that was set, or the usual one for so many parameters that learn."""
        return self.learning_rate or OFFLINE_RATES.of(parameters, are_adapters=are_adapters)
