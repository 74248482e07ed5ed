"""The settings by which a process reaches a chat model, what it may spend, and how the model judges.

They import no torch, and stand below the settings of a policy, whose checks may ask such a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from rewardloop.process.secret_files import as_secret, read_secret


class AskedModel(BaseModel):
    """A chat model at an endpoint or on this machine, and what it may spend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field("", description="base URL of an OpenAI-compatible endpoint, such as https://host/v1")
    model: str = Field("", description="name of the model there")
    api_key: SecretStr | None = Field(
        None,
        description="key of the endpoint; all users can see arguments, so set it by its environment variable or a file",
    )
    api_key_file: Path | None = Field(None, description="file that holds the key")
    base: str = Field("", description="a chat model on this machine instead: a Hugging Face directory or hub id")
    max_length: int = Field(0, ge=0, description="most tokens that it reads and writes; 0: as many as it can")

    timeout_s: float = Field(60.0, gt=0, description="seconds that a reply of the endpoint may take")
    attempts: int = Field(5, ge=1, description="attempts of a call before it is left for later")
    first_pause_s: float = Field(0.5, ge=0, description="pause before the second attempt; doubles from then on")
    longest_pause_s: float = Field(
        60.0, ge=0, description="longest pause; a call is left for later if the endpoint asks for a longer one"
    )
    concurrency: int = Field(8, ge=1, le=256, description="calls in flight at once")
    calls_a_day: int = Field(10_000, ge=0, description="most calls of a day in UTC, failed ones included")
    tokens_a_day: int = Field(0, ge=0, description="most tokens of a day, of requests and replies; 0: no bound")

    @model_validator(mode="after")
    def _endpoint_has_a_model(self) -> Self:
        if bool(self.endpoint) != bool(self.model):
            raise ValueError("endpoint and model go together: name both or neither")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("endpoint: is no URL that begins with http:// or https://")
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("api_key and api_key_file exclude each other")
        return self

    def key(self) -> str:
        """Return the endpoint's key; "" if it has none.

        Raises:
            OSError: If its file cannot be read, or a header cannot carry the key. The text does not show the key.
        """
        if self.api_key_file is not None:
            return read_secret(self.api_key_file)
        return "" if self.api_key is None else as_secret(self.api_key.get_secret_value(), "api_key")

    @property
    def is_named(self) -> bool:
        """Whether there is a model."""
        return bool(self.endpoint or self.base)


class JudgingModel(AskedModel):
    """A chat model that judges."""

    rubric: Path | None = Field(None, description="TOML file with name, version and criteria; default: the shipped one")
    votes: int = Field(1, ge=1, le=100, description="votes in each of the two orders")
    temperature: float = Field(0.0, ge=0, le=2, description="temperature of the votes; several need one above 0")
    max_tokens: int = Field(256, ge=8, description="most tokens of a reply")
    local_reads: Literal["likelihood", "text"] = Field(
        "likelihood", description="how a model on this machine votes: by the likelihood of the verdicts, or in writing"
    )

    @model_validator(mode="after")
    def _votes_differ(self) -> Self:
        if self.votes > 1 and self.temperature == 0 and self.endpoint:
            raise ValueError("votes: several at temperature 0 are one vote: set a temperature above 0")
        return self
