"""The settings of `rewardloop judge`. This module imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rewardloop.formats.redis_url import RedisUrl
from rewardloop_trainer.chat_settings import JudgingModel
from rewardloop_trainer.judging.settings import ModelSettings


class JudgeSettings(ModelSettings, JudgingModel):
    """Labels pairs of responses by a model, in both orders, and measures the model on pairs that people judged too."""

    basic_settings = (
        *("endpoint", "model", "base", "reward_version", "rubric", "votes"),
        *("data", "archive", "server", "calls_a_day", "shared_share", "once"),
    )
    setting_groups = (
        ("endpoint", "The model that judges"),
        ("timeout_s", "Calls and what they may cost"),
        ("metrics_port", "The process"),
        ("reward_base", "A reward model as the judge"),
        ("rubric", "How it judges"),
        ("data", "Which pairs"),
        ("server", "Where labels go, and when it works"),
    )

    reward_base: str = Field("", description="a reward model as the judge: a Hugging Face directory or hub id")
    reward_store: str = Field("rewardloop-data/models", description="model store with the version below")
    reward_version: str = Field("", description="a reward version of that store as the judge")
    trusted_keys: str = Field("", description="file of public ed25519 keys (PEM): that version must be signed by one")
    tie_margin: float = Field(0.0, ge=0, description="scores that differ by no more are equal")

    data: Path | None = Field(
        None, description="file with pairs: {prompt, responses}, or rows of feedback import; default: what is live"
    )
    archive: str = Field("", description="the Parquet ledger with what people judged: a path or an fsspec URL")
    redis_url: RedisUrl | None = Field(None, description="Redis with the log of generations, which --data leaves aside")
    newest: int = Field(20_000, ge=1, description="newest pairs of each kind that are considered")
    min_age_s: float = Field(600.0, ge=0, description="seconds for which a generation is left to people")
    shared_share: float = Field(0.1, ge=0, le=1, description="share of the judged pairs that people judged too")
    least_shared: int = Field(100, ge=0, description="pairs that people judged that are judged at least")
    uncertain_share: float = Field(
        0.8, ge=0, le=1, description="share of the others taken by their scores' uncertainty, if they have scores"
    )
    score_server: str = Field(
        "", description="gRPC address of a service whose scores say which pairs are uncertain; empty: logged scores"
    )
    most_pairs: int = Field(0, ge=0, description="most pairs that are ever judged in the work directory; 0: no bound")

    server: str = Field("", description="gRPC address of the service that records the labels; empty: none")
    out: Path | None = Field(None, description="JSONL file with the labels, as feedback import reads it")
    work_dir: Path = Field(Path("rewardloop-data/judge"), description="cache, budget and progress")
    floor: float = Field(
        0.2,
        ge=0,
        le=1,
        description="a judge whose weight beside people's is shown to be below this is muted: it judges only pairs "
        "that people judged, until its weight is above it; the trainer has reward.source_floor",
    )
    batch: int = Field(200, ge=1, description="pairs that are picked at once")
    poll_s: float = Field(30.0, gt=0, description="seconds between two looks for new pairs")
    once: bool = Field(
        False, description="end when all pairs are judged; exit status 3: the budget of the day is spent"
    )

    def missing(self) -> str | None:
        """Return what the command still has to be told, or None. `config show` shows the settings without it."""
        judges = [self.endpoint, self.base, self.reward_base, self.reward_version]
        if sum(map(bool, judges)) != 1:
            return "name one judge: endpoint with model, base, reward_base or reward_version"
        if self.data is None and not (self.archive or self.redis_url):
            return "name pairs: data, or archive and redis_url"
        if not self.server and self.out is None:
            return "name where labels go: server, out, or both"
        return None
