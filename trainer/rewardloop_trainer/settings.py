"""The settings of `rewardloop train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rewardloop.formats.mixing.names import further_models
from rewardloop.formats.redis_url import RedisUrl
from rewardloop.process.settings import ServerAccess
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.reward.settings import RewardHyperparameters


class TrainSettings(ServerAccess):
    """Archives preference signals, retrains the reward model and the policy, and swaps in what passes its gates."""

    basic_settings = (
        *("store", "redis_url", "server", "work_dir", "archive", "metrics_port", "reward_min_signals"),
        *("policy_min_signals", "policy.algorithm", "reward.base", "torch_threads", "log_format"),
    )
    setting_groups = (
        ("store", "Stores and addresses"),
        ("reward_min_signals", "When a round starts"),
        ("heldout_share", "What a round learns from"),
        ("flush_rows", "The archive, the leader's lock and failed rounds"),
        ("seed", "The process"),
    )

    store: str = Field("rewardloop-data/models", description="model store: a path or an fsspec URL such as s3://...")
    signing_key: str = Field("", description="file of a private ed25519 key (PEM) that signs what is published")
    trusted_keys: str = Field(
        "", description="file of public ed25519 keys (PEM): versions that none of them signed are refused; empty: any"
    )
    redis_url: RedisUrl = Field("redis://127.0.0.1:6379/0", description="Redis with the feedback stream and pointers")
    server: str = Field("127.0.0.1:50051", description="gRPC address of the services")
    work_dir: Path = Field(Path("rewardloop-data/trainer"), description="state and checkpoints")
    archive: str = Field("rewardloop-data/ledger", description="the Parquet ledger: a path or an fsspec URL")
    metrics_port: int = Field(9465, ge=0, le=65535, description="Prometheus page; 0: none")
    metrics_host: str = Field("127.0.0.1", description="address of that page; loopback unless you mean otherwise")

    reward_min_signals: int = Field(256, ge=1, description="new signals that start a reward round")
    reward_max_interval_s: float = Field(3_600, gt=0, description="one new signal starts a round after this long")
    policy_min_signals: int = Field(512, ge=1, description="new signals that start a policy round")
    policy_max_interval_s: float = Field(14_400, gt=0, description="one new signal starts a round after this long")
    reward_models: list[str] = Field(
        [],
        description="reward models to train beside 'reward', such as helpful,harmless: each learns from the signals of "
        "its aspect, by the settings of reward",
    )
    reward_rounds: bool = Field(True, description="train reward models")
    policy_rounds: bool = Field(True, description="train policies, where the store has a first one")

    heldout_share: float = Field(0.1, gt=0, lt=1, description="share of questions that training never sees")
    judge_share: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="share of questions that teach the judge of policies alone (policy.gate.judge own)",
    )
    max_heldout: int = Field(4_000, ge=1, description="held-out records that are kept, a uniform sample of all so far")
    max_judge: int = Field(
        20_000, ge=1, description="records for a judge that are kept, a uniform sample of all so far"
    )
    newest: int = Field(
        200_000, ge=1, description="newest training records that are kept, and most new ones of a round"
    )
    replayed: int = Field(50_000, ge=0, description="older training records that are kept, a uniform sample")
    policy_fresh_growth: float = Field(
        0.0,
        ge=0,
        description="a policy that learns from people's signals starts from the base of its line, and learns from all "
        "signals that are kept, when these have grown by this factor since the last such version, such as 1.5; 0: "
        "never, the default, because it was not measured whether it makes policies better",
    )
    policy_fresh_newest: int = Field(
        25_000, ge=1, description="newest training records of a policy's round that starts from the base"
    )
    policy_fresh_older: int = Field(
        25_000, ge=0, description="older training records of such a round, drawn from all that are kept"
    )
    passes: float = Field(
        3.0, ge=1, description="expected passes of training over a signal in its life; none gets over twice as many"
    )

    trust: Literal["auto", "votes", "off"] = Field(
        "auto",
        description="by what people are weighed: how they agree with each other (votes); the same, and where hardly "
        "anybody judges the same, with a reward model that has not learned from them (auto); or nothing (off)",
    )

    flush_rows: int = Field(5_000, ge=1, description="rows after which a ledger segment is written")
    flush_age_s: float = Field(2.0, gt=0, description="seconds after which a ledger segment is written")
    flush_mib: int = Field(
        64, ge=1, description="most signals, in MiB, that are held at once between the stream and the ledger"
    )
    max_signal_mib: int = Field(
        8, ge=1, description="a larger entry of the stream becomes a dead letter; above serve's --max-event-bytes"
    )
    dead_letters: int = Field(10_000, ge=1, description="dead letters that are kept; the oldest are dropped")
    dead_letters_mib: int = Field(256, ge=1, description="the same, as memory of Redis, in MiB")
    lock_ttl_s: float = Field(10.0, ge=1, description="after this long a killed trainer's place is free")
    promote_timeout_s: float = Field(120.0, gt=0, description="how long the server may take to load a version")
    retry_first_s: float = Field(5.0, gt=0, description="first pause before a failed round is tried again; doubles")
    max_round_deaths: int = Field(5, ge=1, description="a round is given up after so many deaths in one phase")

    seed: int = Field(0, ge=0)
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch's choice")
    once: bool = Field(
        False,
        description="end when the stream is drained and no round is due; exit status 3: a round was skipped, "
        "given up, or is still open after a failed attempt",
    )
    max_rounds: int = Field(0, ge=0, description="end after so many rounds; 0: no bound")
    tracing_endpoint: str = Field(
        "", description="OTLP/HTTP collector for traces, http://host:4318; empty: that of OTEL_* variables, or none"
    )
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    reward: RewardHyperparameters = RewardHyperparameters.model_validate({})
    policy: PolicySettings = PolicySettings.model_validate({})

    @field_validator("reward_models")
    @classmethod
    def _are_names(cls, value: list[str]) -> list[str]:
        """Raises ValueError for a name that no reward model can have."""
        return list(further_models(value))

    @model_validator(mode="after")
    def _starts_anew_now_and_then(self) -> Self:
        if 0 < self.policy_fresh_growth <= 1:
            raise ValueError(
                "policy_fresh_growth must be above 1, or 0: otherwise every round would start from the base"
            )
        return self

    @model_validator(mode="after")
    def _trains_in_one_process(self) -> Self:
        if self.reward.shard or self.policy.shard:
            raise ValueError(
                "shard divides a model among the processes of torchrun, and this trainer is one process: train by hand "
                "with sft, reward-train or policy-train"
            )
        return self

    @model_validator(mode="after")
    def _leaves_questions_to_train_on(self) -> Self:
        if self.heldout_share + self.judge_share >= 1:
            raise ValueError("heldout_share and judge_share leave no question to train on: their sum must be below 1")
        return self
