"""What a child process is told on its standard input, in a line of JSON, and the bounds that fronts share out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rewardloop_server.channel.front import ENGINE
from rewardloop_server.settings import ServeSettings

# Bounds of the whole service, of which each front has its part. The system deals connections out to the fronts evenly,
# but not exactly so.
_SHARED_OUT = ("max_connections", "max_rpcs", "open_calls", "open_calls_per_address", "cache_mib")


@dataclass(frozen=True, slots=True)
class Order:
    """What one process is.

    Attributes:
        name: "engine", or "front-0" and so on.
        number: The front's number; 0 for the engine.
        folder: The private folder of the service.
        settings: Its settings.
    """

    name: str
    number: int
    folder: Path
    settings: ServeSettings

    @property
    def is_engine(self) -> bool:
        """Whether this process runs the models."""
        return self.name == ENGINE

    def to_line(self) -> bytes:
        """Return the order as a line."""
        said = {
            "name": self.name,
            "number": self.number,
            "folder": str(self.folder),
            "settings": self.settings.model_dump(mode="json"),
        }
        return json.dumps(said).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Order:
        """Read what `to_line` wrote. The environment must have no settings, which would outrank those of the order."""
        said = json.loads(line)
        return cls(said["name"], said["number"], Path(said["folder"]), ServeSettings(**said["settings"]))


def orders(settings: ServeSettings, folder: Path) -> tuple[Order, list[Order]]:
    """Return the order of the engine's process, and those of the fronts."""
    quiet = {"metrics_port": 0}  # the process that starts them shows one page for all
    fronts = settings.front_processes
    parts = {name: -(-getattr(settings, name) // fronts) for name in _SHARED_OUT}
    front = settings.model_copy(update=quiet | parts)
    return (
        Order(ENGINE, 0, folder, settings.model_copy(update=quiet)),
        [Order(f"front-{number}", number, folder, front) for number in range(fronts)],
    )
