"""The settings of a process that asks a chat model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewardloop.process.settings import ProcessSettings, ServerAccess
from rewardloop_trainer.chat_settings import AskedModel


class ModelSettings(AskedModel, ServerAccess):
    """A process that asks a chat model."""

    model_config = ProcessSettings.model_config

    metrics_port: int = Field(9467, ge=0, le=65535, description="Prometheus page; 0: none")
    metrics_host: str = Field("127.0.0.1", description="address of that page; loopback unless you mean otherwise")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch's choice")
    output: Literal["table", "json"] = Field("table", description="how the result is printed at the end")
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
