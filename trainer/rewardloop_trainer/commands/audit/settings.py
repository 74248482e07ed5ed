"""The settings of `rewardloop audit`. This module imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from rewardloop.formats.mixing.names import REWARD, further_models
from rewardloop.process.settings import ProcessSettings


class AuditSettings(ProcessSettings):
    """Measures biases of people and of a reward model in the ledger's signals, and lists who was flagged.

    Exit status: 0 if nothing stands out, 1 if there is something to look at, 2 if there is no audit.
    """

    model_config = ProcessSettings.model_config
    basic_settings = ("archive", "data", "store", "model", "version", "traffic", "out", "output")
    setting_groups = (("archive", "What is read"), ("group_tag", "How it is measured"), ("out", "What is written"))

    archive: str = Field("rewardloop-data/ledger", description="the Parquet ledger: a path or an fsspec URL")
    data: Path | None = Field(
        None, description="JSONL or Parquet rows, as feedback import reads them, instead of the ledger"
    )
    store: str = Field("rewardloop-data/models", description="model store with the version to audit")
    trusted_keys: str = Field("", description="file of public ed25519 keys (PEM): versions must be signed by one")
    model: str = Field(REWARD, description="the reward model to audit, by its name: the signals of its aspect are read")
    version: str = Field(
        "", description="the version of --model to audit: its number; empty: signals and people alone are audited"
    )
    newest: int = Field(50_000, ge=1, description="newest signals that are read")
    traffic: Path | None = Field(
        None,
        description="JSONL or Parquet rows {prompt, tags, count} of the product's requests, beside which it is shown "
        "whose signals are few",
    )

    group_tag: str = Field("group", description="the tag of a signal that names the group of its person")
    heldout_share: float = Field(0.1, gt=0, lt=1, description="the trainer's setting: questions that it never learns")
    probed: int = Field(200, ge=10, description="responses that each probe of form changes")
    token_budget: int = Field(4096, ge=1, description="tokens in one forward pass, padding included")
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch's choice")

    out: Path = Field(Path("rewardloop-audit"), description="directory of report.html and report.json")
    publish: bool = Field(False, description="also put the report into the store, where the console shows it")
    metrics_file: Path | None = Field(
        None,
        description="file of metrics in Prometheus' text format, such as one of node_exporter's textfile collector",
    )
    output: Literal["table", "json"] = Field("table", description="how the findings are printed")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    log_format: Literal["console", "json"] = "console"

    @field_validator("model")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        """Raises ValueError for a name that no reward model can have."""
        if value != REWARD:
            further_models([value])
        return value
