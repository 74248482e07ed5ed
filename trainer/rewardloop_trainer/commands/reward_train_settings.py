"""The settings of `rewardloop reward-train`. This module imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rewardloop.formats.mixing.names import REWARD, further_models
from rewardloop.process.settings import ProcessSettings
from rewardloop_trainer.reward.settings import RewardHyperparameters


class RewardTrainSettings(ProcessSettings, RewardHyperparameters):
    """Trains a reward model on a file of preferences, exports it, and judges it against its start. The same command
    goes on where a killed one stopped."""

    model_config = ProcessSettings.model_config
    basic_settings = (
        *("base", "store", "version", "data", "out", "epochs", "learning_rate", "method", "max_length"),
        *("heldout_share", "publish", "device"),
    )
    setting_groups = (("epochs", "Training"), ("store", "Start, files and the process"))

    store: str = Field("", description="model store: of --version, and where --publish goes")
    model: str = Field(REWARD, description="the reward model's name, under which --publish puts it into the store")
    version: str = Field("", description="where it starts, instead of --base: the number of a version of --model")
    signing_key: str = Field("", description="file of a private ed25519 key (PEM) that signs what is published")
    trusted_keys: str = Field("", description="file of public ed25519 keys (PEM), one of which signed --version")
    data: Path = Field(description="JSONL, plain or gzipped, or Parquet: the rows of rewardloop feedback import")
    out: Path = Field(description="directory to write: version/, report/ and, while it runs, checkpoints/")
    heldout_share: float = Field(
        0.1, ge=0, lt=1, description="of the prompts, kept out to judge by and to end training by; 0: none"
    )
    trust: Literal["auto", "votes", "off"] = Field(
        "auto",
        description="by what the people of the file are weighed: how they agree with each other (votes); the same, "
        "and where hardly anybody judges the same, with a model of --base that learned from none of them (auto); or "
        "nothing (off)",
    )
    publish: bool = Field(False, description="put the version into the store if its gate lets it pass")
    draw_every: int = Field(10, ge=0, description="steps between two drawings of report.png; 0: at the end alone")
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch's choice")
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"

    @field_validator("model")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        """Raises ValueError for a name that no reward model can have."""
        if value != REWARD:
            further_models([value])
        return value

    @model_validator(mode="after")
    def _starts_somewhere(self) -> Self:
        if bool(self.base) == bool(self.version):
            raise ValueError("name where training starts: either base, or version of store")
        if (self.version or self.publish) and not self.store:
            raise ValueError("version and publish need store")
        return self

    @model_validator(mode="after")
    def _has_what_it_compares_with(self) -> Self:
        """Raises ValueError for a threshold of the comparison with the start, which a new model has not."""
        unread: list[str] = [name for name in ("gate_margin", "gate_tolerance") if name in self.model_fields_set]
        unread += [f"checks.{name}" for name in ("benchmark", "slice") if getattr(self.checks, name) is not None]
        if self.base and unread:
            raise ValueError(f"{', '.join(unread)}: a comparison with the version where training starts: name version")
        return self
