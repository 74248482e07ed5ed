"""The settings of `rewardloop policy-train`. This module imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rewardloop.process.settings import ProcessSettings, ServerAccess
from rewardloop_trainer.policy.settings import PolicySettings


class PolicyTrainSettings(ServerAccess, PolicySettings):
    """Trains a policy on pairs or thumbs (auto, dpo, kto, ..), or on prompts whose answers a server scores. The same
    command goes on where a killed one stopped."""

    model_config = ProcessSettings.model_config
    basic_settings = (
        *("base", "store", "version", "prompts", "out", "server", "algorithm", "learning_rate"),
        *("beta", "max_length", "heldout_share", "publish"),
    )
    setting_groups = (("epochs", "Training on people's choices"), ("base", "Start, files and the process"))

    base: str = Field("", description="where it starts: a Hugging Face directory or hub id, safetensors only")
    store: str = Field("", description="model store: of --version, and where --publish goes")
    signing_key: str = Field("", description="file of a private ed25519 key (PEM) that signs what is published")
    trusted_keys: str = Field("", description="file of public ed25519 keys (PEM), one of which signed --version")
    version: str = Field("", description="where it starts, instead of --base: the number of a policy in the store")
    prompts: Path = Field(
        description="JSONL, plain or gzipped, or Parquet: {prompt}, {messages}, or pairs or thumbs with a prompt"
    )
    out: Path = Field(description="directory to write: policy/, report/ and, while it runs, checkpoints/")
    server: str = Field("127.0.0.1:50051", description="gRPC address of the service that scores")
    heldout_share: float = Field(
        0.1, ge=0, lt=1, description="of the prompts, kept out for the win rate against the start; 0: none"
    )
    max_length: int = Field(0, ge=0, description="tokens of prompt and answer together; 0: what the start reads")
    layout: Literal["exact", "plain"] = Field(
        "exact",
        description="of --base: lay texts out as its own chat template does, or refuse it; or plainly, which leaves "
        "the written policy without a chat template",
    )
    trust: Literal["auto", "votes", "off"] = Field(
        "auto",
        description="by what the people of the file are weighed: how they agree with each other (votes); auto is the "
        "same here, as this command has no reward model to ask; or nothing "
        "(off)",
    )
    publish: bool = Field(False, description="put the policy into the store if its gate lets it pass")
    draw_every: int = Field(10, ge=1, description="steps after which report/report.png is drawn again")
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch's choice")
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _has_a_start(self) -> Self:
        if bool(self.base) == bool(self.version):
            raise ValueError("name where it starts: --base, or --version with --store")
        if self.version and self.layout != "exact":
            raise ValueError("layout is for --base: a version in the store has its layout already")
        if (self.version or self.publish) and not self.store:
            raise ValueError("--version and --publish need --store")
        return self

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> Self:
        """Raises ValueError for a threshold that only the rounds of the trainer read."""
        unread = [f"live_test.{name}" for name in sorted(self.live_test.model_fields_set)]
        unread += ["gate.earlier_version"] if "earlier_version" in self.gate.model_fields_set else []
        if unread:
            raise ValueError(f"{', '.join(unread)}: read in rounds of `rewardloop train` alone")
        if self.base and self.gate.anchor:
            raise ValueError("gate.anchor names a version of the line of --version, and a base has no line yet")
        return self
