"""Settings of the policy worker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewardloop_server.calls.estimate import DEFAULT_NEW_TOKENS
from rewardloop_server.settings import ServingSettings


class PolicyWorkerSettings(ServingSettings):
    """Answers prompts with the live policy, over gRPC."""

    basic_settings = (
        *("store", "redis_url", "listen", "metrics_port", "device", "torch_threads", "max_new_tokens"),
        *("tls_cert", "tls_key", "callers", "log_format"),
    )
    setting_groups = (("device", "Running the policy"),)

    listen: str = Field(
        "127.0.0.1:50052",
        description="gRPC address (host:port or unix:PATH); on loopback unless others must reach it",
    )
    metrics_port: int = Field(9466, ge=0, le=65535, description="Prometheus page; 0: none")

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the policy runs")
    torch_threads: int = Field(
        1, ge=0, description="threads of torch; 0: one a core, which is slower if other processes share the cores"
    )
    max_batch_rows: int = Field(64, ge=1, description="most candidates sampled together")
    queue_rows: int = Field(1024, ge=1, description="bound of the queue, in candidates")
    max_new_tokens: int = Field(
        0,
        ge=0,
        description="most new tokens of a candidate, and the default; 0: as many as the policy's context holds, and "
        f"{DEFAULT_NEW_TOKENS} by default",
    )
