"""The settings of `rewardloop off-policy`. This module imports no torch, so that `--help` is quick."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewardloop.process.settings import ProcessSettings, ServerAccess


class OffPolicySettings(ServerAccess):
    """Estimates from people's judgements of other policies' answers what people would give a policy's answers."""

    model_config = ProcessSettings.model_config
    basic_settings = ("archive", "store", "version", "base", "bandit", "server", "most_weight", "output")
    setting_groups = (("archive", "What is read"), ("responses", "How it is estimated"), ("output", "The process"))

    archive: str = Field("rewardloop-data/ledger", description="the Parquet ledger: a path or an fsspec URL")
    store: str = Field("rewardloop-data/models", description="model store with the versions that gave the answers")
    trusted_keys: str = Field("", description="file of public ed25519 keys (PEM): versions must be signed by one")
    version: str = Field("", description="the policy to estimate: its number in the store")
    base: str = Field("", description="the policy to estimate, instead of --version: a Hugging Face directory")
    bandit: Literal["", "greedy", "thompson"] = Field(
        "",
        description="instead of a policy, a contextual bandit that chooses among the answers shown together: the best "
        "in expectation but for --epsilon, or the best by a draw of its posterior",
    )
    epsilon: float = Field(0.1, ge=0, le=1, description="share of a greedy bandit's choices that is drawn at random")
    newest: int = Field(20_000, ge=1, description="newest judgements that are read; for a bandit, newest signals")
    server: str = Field(
        "", description="gRPC address of a service that scores, for the doubly robust estimate; empty: without it"
    )
    responses: int = Field(4, ge=1, le=64, description="answers that are sampled to each prompt for that estimate")
    most_weight: float = Field(20.0, gt=0, description="larger importance weights are truncated to it")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens in one forward pass, padding included")
    seed: int = Field(0, ge=0)
    output: Literal["table", "json"] = Field("table", description="how the result is printed")
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch's choice")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    log_format: Literal["console", "json"] = "console"
