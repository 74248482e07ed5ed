"""One front among several, and the private folder in which the processes of a service find each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardloop_server.channel.shared_quotas import SharedQuotas
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.versions.host import VersionHost

ENGINE = "engine"
_PAGE = ".page"
# A front that is started beside others opens its port once it can score, because the system would send it connections
# at once. If there is nothing to load, it opens the port all the same.
_WARM_S = 5.0


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a service with several processes. Only its user may look into the folder."""

    path: Path

    @property
    def engine(self) -> Path:
        """The socket on which the engine's process takes what fronts hand over."""
        return self.path / f"{ENGINE}.socket"

    @property
    def quotas(self) -> Path:
        """The folder of the files in which all fronts count what callers have left of their quotas."""
        return self.path / "quotas"

    def page(self, process: str) -> Path:
        """Return the socket on which a process shows its metrics."""
        return self.path / f"{process}{_PAGE}"

    def pages(self) -> Mapping[str, Path]:
        """Return all such sockets by the names of the processes."""
        return {path.name.removesuffix(_PAGE): path for path in sorted(self.path.glob(f"*{_PAGE}"))}


@dataclass(frozen=True, slots=True)
class Front:
    """This process as one of several fronts.

    Attributes:
        number: Its number, from 0, which the process that is started in its place has again.
        fronts: How many fronts there are.
        folder: Where it finds the engine and the other fronts.
        metrics: Where it measures.
        on_ready: Called once it answers.
    """

    number: int
    fronts: int
    folder: Folder
    metrics: ServerMetrics
    on_ready: Callable[[], None]

    @property
    def allow(self) -> SharedQuotas:
        """Makes the allowances of callers, which all fronts share."""
        return SharedQuotas(self.folder.quotas, self.number, self.fronts)


async def until_warm(host: VersionHost[Any]) -> None:
    """Wait until a version is active, but not for long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_WARM_S):
            await anext(host.changes())
