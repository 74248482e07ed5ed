"""What can be chosen about supervised training; light, for it is read before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rewardloop.process.settings import ProcessSettings


class SftSettings(BaseModel):
    """Supervised training on the assistant's turns. The defaults suit a small model trained from nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_share: float = Field(0.05, ge=0, le=1, description="of all steps; then linear to 0")
    clip_norm: float = Field(1.0, gt=0)
    batch_examples: int = Field(32, ge=1, description="examples in one optimizer step")
    micro_batch_tokens: int = Field(8192, ge=1, description="padded tokens in one forward pass")
    packing: bool = Field(False, description="several examples in a row of the maximum length, unseen by each other")
    checkpoint_every_steps: int = Field(100, ge=0, description="0: never")
    seed: int = 0


class SftRunSettings(ProcessSettings, SftSettings):
    """Supervised training of a base on {prompt, completion} or {messages} rows: a Hugging Face directory in and out."""

    model_config = ProcessSettings.model_config
    basic_settings = (
        *("base", "data", "out", "epochs", "learning_rate", "batch_examples", "max_length"),
        *("learn", "heldout_share", "device"),
    )
    setting_groups = (("epochs", "Training"), ("base", "Files and the process"))

    base: str = Field(description="Hugging Face directory or hub id of a causal LM, safetensors only")
    data: Path = Field(description="JSONL, plain or gzipped, or Parquet")
    out: Path = Field(description="directory to write; the same command goes on where a killed one stopped")
    learn: Literal["all", "last"] = Field("all", description="which of the assistant's turns in messages are learned")
    heldout_share: float = Field(0.05, ge=0, lt=1, description="of the prompts, kept out for the perplexity; 0: none")
    max_length: int = Field(0, ge=0, description="tokens of an example, and of a packed row; 0: what the base reads")
    learning_rate: float = Field(2e-5, gt=0)
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it trains")
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch's choice")
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
