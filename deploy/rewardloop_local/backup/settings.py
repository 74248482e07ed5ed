"""The settings of `rewardloop backup` and `rewardloop restore`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from rewardloop.formats.redis_url import parse_redis_url
from rewardloop.process.settings import ProcessSettings


class PlacesSettings(ProcessSettings):
    """Where the parts of a deployment are."""

    basic_settings: ClassVar[tuple[str, ...]] = ("backup", "data", "store", "archive", "work_dir", "redis_url", "spool")
    setting_groups = (("backup", "The backup and the deployment"),)

    backup: Path = Field(description="the backup: a directory, or a file if its name ends in .tar")
    data: Path = Field(Path("rewardloop-data"), description="data directory of 'rewardloop up'")
    store: str = Field("", description="model store, a path or URL; empty: the one under --data")
    archive: str = Field("", description="ledger, a path or URL; empty: the one under --data")
    work_dir: Path | None = Field(None, description="the trainer's work directory; by default the one under --data")
    redis_url: str = Field(
        "", description="Redis; empty: the embedded one under --data. Set REWARDLOOP_REDIS_URL if it has a password"
    )
    spool: Path | None = Field(None, description="spool of a server, if it has one")

    @field_validator("redis_url")
    @classmethod
    def _names_a_redis(cls, value: str) -> str:
        """Raises ValueError for a URL that cannot be used."""
        if value:
            parse_redis_url(value)
        return value


class BackupSettings(PlacesSettings):
    """Copies Redis, the ledger, the model store and the trainer's state into one backup, while everything runs.

    'rewardloop backup DIR' is short for 'rewardloop backup --backup DIR'. Every signal that was acknowledged before
    it began is in the backup. Trainers wait for the time that it takes to copy what changes; scoring goes on.
    """


class RestoreSettings(PlacesSettings):
    """Puts a backup back into places that are empty, and leaves the rest to the next start.

    'rewardloop restore DIR' is short for 'rewardloop restore --backup DIR'. No process may run on these places
    meanwhile. Every file is compared with its SHA-256 before anything is written.
    """

    basic_settings = (*PlacesSettings.basic_settings, "replace")

    replace: bool = Field(False, description="move what is there aside, and delete the keys of rewardloop in Redis")
