"""Settings of the policy worker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewardloop.formats.redis_url import RedisUrl
from rewardloop_server.doors.settings import DoorSettings


class PolicyWorkerSettings(DoorSettings):
    """Answers prompts with the live policy, over gRPC."""

    basic_settings = (
        *("store", "redis_url", "listen", "metrics_port", "device", "torch_threads", "max_new_tokens"),
        *("tls_cert", "tls_key", "callers", "log_format"),
    )
    setting_groups = (
        ("store", "Stores and addresses"),
        ("device", "Running the policy"),
        ("generation_ttl_s", "Generations and the process"),
    )

    store: str = Field("rewardloop-data/models", description="model store: a path or an fsspec URL such as s3://...")
    trusted_keys: str = Field(
        "", description="file of public ed25519 keys (PEM): versions that none of them signed are refused; empty: any"
    )
    redis_url: RedisUrl = Field("redis://127.0.0.1:6379/0", description="Redis with generations and pointers")
    listen: str = Field("127.0.0.1:50052", description="gRPC address (host:port or unix:PATH)")
    metrics_port: int = Field(9466, ge=0, le=65535, description="Prometheus page; 0: none")
    metrics_host: str = Field("127.0.0.1", description="address of that page; loopback unless you mean otherwise")

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the policy runs")
    torch_threads: int = Field(
        1, ge=0, description="threads of torch; 0: one a core, which is slower where cores are shared"
    )
    max_batch_rows: int = Field(64, ge=1, description="most candidates sampled together")
    queue_rows: int = Field(1024, ge=1, description="bound of the queue, in candidates")
    max_new_tokens: int = Field(64, ge=1, description="most new tokens of a candidate, and the default")
    max_text_bytes: int = Field(262_144, ge=1, description="most UTF-8 bytes in one text")
    max_message_bytes: int = Field(64 * 2**20, ge=1024, description="most bytes in one gRPC message")

    generation_ttl_s: int = Field(7 * 86_400, ge=60, description="how long a generation_id can be named")
    generation_key_file: str = Field("", description="keys that sign generation ids, as of rewardloop serve")
    pointer_poll_s: float = Field(0.25, gt=0, description="how often the active pointer is read")
    drain_grace_s: float = Field(20.0, ge=0, description="how long requests in flight may finish after SIGTERM")
    tracing_endpoint: str = Field(
        "", description="OTLP/HTTP collector for traces, http://host:4318; empty: that of OTEL_* variables, or none"
    )
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
