"""The settings of `rewardloop models prune`."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from rewardloop.formats.redis_url import parse_redis_url
from rewardloop.process.settings import ProcessSettings

_PIN = re.compile(r"[^:\s]+:\d{1,18}")


class PruneSettings(ProcessSettings):
    """Deletes versions that nothing needs any more, of every model of the store.

    Kept are the active version, canary and shadow, the versions that the next rollbacks go back to, those that are
    newer than the active one, the newest ones, and what these need: the graph of a delta, the anchor of a policy, the
    best version so far of the gate, and the first version of the line. Manifests of deleted versions stay in the store.
    """

    basic_settings = ("keep", "rollbacks", "pin", "dry_run", "data", "store", "redis_url")
    setting_groups = (("keep", "What is kept, and where"),)

    keep: int = Field(5, ge=1, description="newest versions of each model that are kept, whatever they are")
    rollbacks: int = Field(3, ge=0, description="versions of each model that are kept for rollbacks, one after another")
    pin: list[str] = Field(
        [], description="versions to keep, such as reward:3, which a judge or another deployment needs; may be repeated"
    )
    dry_run: bool = Field(False, description="only say what would be deleted")
    json_output: bool = Field(False, description="print JSON, with why each version is kept")
    data: Path = Field(Path("rewardloop-data"), description="data directory of 'rewardloop up'")
    store: str = Field("", description="model store, a path or URL; empty: the one under --data")
    redis_url: str = Field(
        "",
        description="Redis that says what is in use; empty: the embedded one under --data. Set REWARDLOOP_REDIS_URL if "
        "it has a password",
    )

    @field_validator("redis_url")
    @classmethod
    def _names_a_redis(cls, value: str) -> str:
        """Raises ValueError for a URL that cannot be used."""
        if value:
            parse_redis_url(value)
        return value

    @field_validator("pin")
    @classmethod
    def _names_versions(cls, value: list[str]) -> list[str]:
        for pin in value:
            if _PIN.fullmatch(pin) is None:
                raise ValueError(f"{pin!r} is not of the form MODEL:VERSION")
        return value
