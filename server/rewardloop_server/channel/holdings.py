"""The versions that the engine's process has in memory, each for as long as a front holds it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import structlog

from rewardloop.formats.store import Manifest, ModelStore, VersionNotFound
from rewardloop_server.calls.errors import UnknownVersion
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.versions.host import fetch_and_load

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Holding:
    """A version, and how often it is held.

    Attributes:
        loading: Ends with the version and its folder, or with why it is refused.
    """

    handle: int
    name: tuple[str, str]
    loading: asyncio.Future[tuple[RewardModel, Path]]
    count: int = 0


class Holdings:
    """Loads each version once, whatever number of fronts hold it, so that their groups run together.

    Args:
        store: Where versions come from.
        load: Makes one ready; as of `VersionHost`.
        threads: Where they are loaded.
    """

    def __init__(self, store: ModelStore, load: Callable[[Manifest, Path], RewardModel], threads: Executor) -> None:
        self._store = store
        self._load = load
        self._threads = threads
        self._handles = itertools.count(1)
        self._by_name: dict[tuple[str, str], _Holding] = {}
        self._by_handle: dict[int, _Holding] = {}

    def model(self, handle: int) -> RewardModel | None:
        """Return the version of this handle, or None if nobody holds it."""
        found = self._by_handle.get(handle)
        return found.loading.result()[0] if found is not None else None

    async def hold(self, model: str, version: str) -> tuple[int, RewardModel, Path]:
        """Hold a version until `let_go`. Returns its handle, the warm version, and the folder of its files.

        Raises UnknownVersion or VersionRefused, and then it is not held.
        """
        name = (model, version)
        holding = self._by_name.get(name)
        if holding is None:
            loop = asyncio.get_running_loop()
            loading = loop.run_in_executor(self._threads, self._loaded, model, version)
            holding = self._by_name[name] = _Holding(next(self._handles), name, loading)
        holding.count += 1
        try:
            loaded, directory = await asyncio.shield(holding.loading)
        except BaseException:
            self._give_back(holding)
            raise
        self._by_handle[holding.handle] = holding
        return holding.handle, loaded, directory

    def let_go(self, handle: int) -> None:
        """Free the version if nobody else holds it."""
        if (holding := self._by_handle.get(handle)) is not None:
            self._give_back(holding)

    def _give_back(self, holding: _Holding) -> None:
        holding.count -= 1
        if holding.count == 0:
            self._by_name.pop(holding.name, None)
            self._by_handle.pop(holding.handle, None)
            holding.loading.add_done_callback(_close)

    def _loaded(self, model: str, version: str) -> tuple[RewardModel, Path]:
        """Fetch and load a version in this thread. Raises UnknownVersion or VersionRefused."""
        folder = Path()

        def load(manifest: Manifest, directory: Path) -> RewardModel:
            nonlocal folder
            folder = directory
            return self._load(manifest, directory)

        try:
            return fetch_and_load(self._store, load, model, version), folder
        except VersionNotFound as error:
            raise UnknownVersion(str(error)) from error


def _close(loading: asyncio.Future[tuple[RewardModel, Path]]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result()[0].close()
