"""Settings of the policy worker."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rewardloop_server.calls.estimate import DEFAULT_NEW_TOKENS
from rewardloop_server.settings import ServingSettings


class PolicyWorkerSettings(ServingSettings):
    """Answers prompts with the live policy, over gRPC."""

    basic_settings = (
        *("store", "redis_url", "listen", "metrics_port", "device", "torch_threads", "max_new_tokens"),
        "vllm_url",
        *("tls_cert", "tls_key", "callers", "log_format"),
    )
    setting_groups = (("device", "Running the policy"), ("vllm_url", "Running the policy on a vLLM server"))

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
    max_batch_tokens: int = Field(
        262144,
        ge=1,
        description="most tokens of prompts and answers held in memory for them, where each candidate counts as many "
        "as the longest may get; a request that takes more is sampled alone",
    )
    queue_rows: int = Field(1024, ge=1, description="bound of the queue, in candidates")
    max_new_tokens: int = Field(
        0,
        ge=0,
        description="most new tokens of a candidate, and the default; 0: as many as the policy's context holds, and "
        f"{DEFAULT_NEW_TOKENS} by default",
    )

    vllm_url: str = Field(
        "", description="base URL of a vLLM server that samples, such as http://127.0.0.1:8000; empty: torch, here"
    )
    vllm_directory: Path | None = Field(
        None, description="directory for adapters that this process and the vLLM server both see by this path"
    )
    vllm_api_key_file: Path | None = Field(
        None, description="file with the key to show to the vLLM server; none: no key"
    )
    vllm_timeout_s: float = Field(
        60.0, gt=0, description="longest wait for the next token of the vLLM server before it is taken for lost"
    )
    vllm_max_lora_rank: int = Field(64, ge=1, description="--max-lora-rank of the vLLM server")
    vllm_check: bool = Field(
        True,
        description="compare a version's log-probabilities on the vLLM server with those of torch on the CPU before it "
        "serves; takes the memory of its weights meanwhile",
    )
    vllm_most_gap: float = Field(
        0.05, gt=0, description="largest mean difference of these log-probabilities, in nats per token"
    )

    @field_validator("vllm_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ValueError("not the URL of a server, such as http://127.0.0.1:8000")
        return url

    @model_validator(mode="after")
    def _can_hand_over_adapters(self) -> Self:
        if self.vllm_url and self.vllm_directory is None:
            raise ValueError("vllm_url needs vllm_directory, where the server reads the adapters that are written")
        return self
