"""The settings of `rewardloop critique`. This module imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from rewardloop_trainer.judging.settings import ModelSettings


class CritiqueSettings(ModelSettings):
    """Lets a model criticise answers by principles that are drawn from a constitution, and write them anew."""

    basic_settings = (
        *("endpoint", "model", "base", "constitution", "rounds", "prompts", "answers", "out", "server"),
        *("work_dir", "calls_a_day", "tokens_a_day"),
    )
    setting_groups = (
        ("endpoint", "The model"),
        ("timeout_s", "Calls and what they may cost"),
        ("metrics_port", "The process"),
        ("constitution", "How it criticises"),
        ("prompts", "What is revised, and where it goes"),
    )

    constitution: Path | None = Field(None, description="TOML file with the principles; default: the shipped one")
    rounds: int = Field(2, ge=1, le=20, description="rounds of critique and revision of an answer")
    temperature: float = Field(0.7, ge=0, le=2, description="temperature of answers, critiques and revisions")
    max_tokens: int = Field(512, ge=1, description="most tokens of an answer and of a critique")
    prefers: bool = Field(
        True,
        description="also ask, in both orders, whether a revision is better by its principle, as preference labels",
    )

    prompts: Path | None = Field(
        None, description="JSONL or Parquet file: {prompt}, {messages}, or with an answer {prompt, completion}"
    )
    answers: Literal["model", "policy"] = Field(
        "model", description="who answers a prompt that has no answer: the model itself, or the live policy of --server"
    )
    most: int = Field(0, ge=0, description="most prompts of the file; 0: all")
    out: Path = Field(
        Path("critique"),
        description="directory for sft.jsonl, edits.jsonl, preferences.jsonl, steps.jsonl and counts.json",
    )
    server: str = Field("", description="gRPC address of the service that records edits and preferences; empty: none")
    work_dir: Path = Field(Path("rewardloop-data/critique"), description="cache, budget and progress")

    def missing(self) -> str | None:
        """Return what the command still has to be told, or None. `config show` shows the settings without it."""
        if bool(self.endpoint) == bool(self.base):
            return "name one model: endpoint with model, or base"
        if self.prompts is None:
            return "prompts: name the file of prompts"
        if self.answers == "policy" and not self.server:
            return "answers: the live policy answers at --server, which is not named"
        return None
