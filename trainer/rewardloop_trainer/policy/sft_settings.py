"""Settings of supervised training. Imports no torch, for a fast --help."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rewardloop.process.settings import ProcessSettings
from rewardloop_trainer.learning.settings import SFT_RATES, LearnerSettings


class SftSettings(BaseModel):
    """Supervised training on the assistant's turns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, gt=0, description=f"none: {SFT_RATES}")
    weight_decay: float = Field(0.01, ge=0)
    warmup_share: float = Field(
        0.05, ge=0, le=1, description="share of the steps in which the rate rises; it then falls linearly to 0"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradients")
    batch_examples: int = Field(32, ge=1, description="examples in one optimizer step")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens in one forward pass, padding included")
    packing: bool = Field(
        False, description="put several examples into a row of the maximum length, where they do not see each other"
    )
    checkpoint_every_steps: int = Field(100, ge=0, description="steps between two checkpoints; 0: none")
    seed: int = 0

    def rate_for(self, parameters: int, *, are_adapters: bool) -> float:
        """Return the rate that was set, or the usual one for so many parameters that learn."""
        return self.learning_rate or SFT_RATES.of(parameters, are_adapters=are_adapters)


class SftRunSettings(ProcessSettings, LearnerSettings, SftSettings):
    """Supervised training of a base on {prompt, completion} or {messages} rows: a Hugging Face directory in and out."""

    model_config = ProcessSettings.model_config
    basic_settings = (
        *("base", "data", "out", "epochs", "learning_rate", "batch_examples", "max_length"),
        *("learn", "heldout_share", "device"),
    )
    setting_groups = (("epochs", "Training"), ("base", "Files and the process"))

    base: str = Field(description="Hugging Face directory or hub id of a causal LM, safetensors only")
    data: Path = Field(description="JSONL, plain or gzipped, or Parquet")
    out: Path = Field(
        description="directory to write; after a kill the same command continues from the last checkpoint"
    )
    learn: Literal["all", "last"] = Field("all", description="which of the assistant's turns in messages are learned")
    heldout_share: float = Field(
        0.05, ge=0, lt=1, description="share of the prompts held out for the perplexity; 0: none"
    )
    max_length: int = Field(
        0, ge=0, description="most tokens of an example and of a packed row; 0: as many as the base can read"
    )
    layout: Literal["exact", "plain"] = Field(
        "exact",
        description="lay texts out as the base's own chat template does, or refuse it; or plainly, which leaves the "
        "written model without a chat template",
    )
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch chooses")
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
