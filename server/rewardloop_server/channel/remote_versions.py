"""The versions that the engine's process holds for a front, which has the tokenizers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from rewardloop.formats.manifest import reads_alike
from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.store import Calibration, Manifest, ModelStore
from rewardloop.formats.text import Encoder
from rewardloop_server.calls.errors import NotLoadable, RewardloopError, UnknownVersion, VersionRefused
from rewardloop_server.channel.frames import Kind
from rewardloop_server.channel.link import EngineLink
from rewardloop_server.channel.messages import json_to_bytes
from rewardloop_server.loading.opening import read_encoder
from rewardloop_server.versions.host import VersionHost

log = structlog.get_logger()

_LOOK_S = 0.05
_RETRY_S = 2.0


class RemoteModel:
    """A version that the engine's process runs.

    Attributes:
        handle: By what the engine knows it on the link's connection number ``epoch``.
    """

    def __init__(self, versions: RemoteVersions, manifest: Manifest, encoder: Encoder, handle: int, epoch: int) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.calibration = manifest.calibration or Calibration()
        self.handle = handle
        self.epoch = epoch
        self.retry_at = 0.0  # when the engine is asked again to hold it, after it could not
        self._versions = versions

    @property
    def is_away(self) -> bool:
        """Whether the server elsewhere that runs it is away."""
        return self._versions.is_away(self)

    def close(self) -> None:
        """Let the engine free it, unless other fronts need it. Called once."""
        self._versions.let_go(self)


class RemoteVersions:
    """Has the engine's process fetch, check and load versions, and reads their tokenizers here.

    `fetch` and `load` are called in threads, one after the other for each version; the rest from the event loop.

    Args:
        store: The model store.
        link: The connection.
        loop: The event loop that runs the link.
    """

    def __init__(self, store: ModelStore, link: EngineLink, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._link = link
        self._loop = loop
        self._held: dict[tuple[str, str], tuple[dict[str, Any], int]] = {}  # between `fetch` and `load`
        self._models: set[RemoteModel] = set()
        self._hosts: Mapping[str, VersionHost[Any]] = {}

    def take_hosts(self, hosts: Mapping[str, VersionHost[Any]]) -> None:
        """Take the hosts of the versions, by model."""
        self._hosts = hosts

    @property
    def is_served(self) -> bool:
        """Whether the engine's process is there, and has the active version of the model "reward" of this front."""
        active = [model for model in self._models if model.manifest.model == REWARD and self._is_active(model)]
        return self._link.is_up and all(model.epoch == self._link.epoch for model in active)

    def is_away(self, model: RemoteModel) -> bool:
        """Return whether a server elsewhere runs the version that is away, by what the engine's process said last."""
        return model.epoch == self._link.epoch and model.handle in self._link.away

    def versions(self, model: str) -> list[int]:
        """Return the numbers of the model's versions in ascending order."""
        return self._store.versions(model)

    def manifest(self, model: str, version: int | str) -> Manifest:
        """Read the manifest of a version, as the store does."""
        return self._store.manifest(model, version)

    def fetch(self, model: str, version: int | str) -> Path:
        """Have the engine hold a version. Returns the folder in which the engine has verified it.

        Raises a RewardloopError: the engine's refusal, or NoModel if its process is away.
        """
        held = asyncio.run_coroutine_threadsafe(self._hold(model, str(version)), self._loop).result()
        self._held[model, str(version)] = held
        return Path(held[0]["directory"])

    def load(self, manifest: Manifest, directory: Path) -> RemoteModel:
        """Return a version that `fetch` has fetched. Raises NotLoadable if its tokenizer cannot be read."""
        said, epoch = self._held.pop((manifest.model, manifest.version))
        try:
            if said["digest"] != manifest.digest:
                raise NotLoadable(f"{manifest.model} {manifest.version} has changed in the store")
            model = RemoteModel(self, manifest, self._encoder(manifest, directory), said["handle"], epoch)
        except BaseException:
            self._loop.call_soon_threadsafe(self._release, said["handle"], epoch)
            raise
        self._loop.call_soon_threadsafe(self._models.add, model)
        return model

    def let_go(self, model: RemoteModel) -> None:
        """Tell the engine that this front needs a version no more."""
        self._models.discard(model)
        self._release(model.handle, model.epoch)

    async def keep(self) -> None:
        """Have a new process of the engine hold what the last one held, until cancelled: what serves first."""
        while True:
            for model in sorted(self._models, key=self._is_active, reverse=True):
                is_due = time.monotonic() >= model.retry_at
                if self._link.is_up and model.epoch != self._link.epoch and is_due:
                    await self._hold_again(model)
            await asyncio.sleep(_LOOK_S)

    async def _hold_again(self, model: RemoteModel) -> None:
        manifest = model.manifest
        try:
            said, epoch = await self._hold(manifest.model, manifest.version)
            if said["digest"] != manifest.digest:
                self._release(said["handle"], epoch)
                raise NotLoadable(f"{manifest.model} {manifest.version} has changed in the store")
        except RewardloopError as error:
            if not self._link.is_up:  # the engine has ended once more
                return
            log.warning("not loaded again", model=manifest.model, version=manifest.version, error=str(error))
            model.retry_at = time.monotonic() + _RETRY_S
            host = self._hosts.get(manifest.model)
            if host is not None and isinstance(error, UnknownVersion | VersionRefused):
                await host.lose(manifest.version)
            return
        if model in self._models:
            model.handle, model.epoch = said["handle"], epoch
        else:  # it was closed meanwhile
            self._release(said["handle"], epoch)

    def _is_active(self, model: RemoteModel) -> bool:
        host = self._hosts.get(model.manifest.model)
        return host is not None and host.active is model.manifest

    def _encoder(self, manifest: Manifest, directory: Path) -> Encoder:
        """Read a tokenizer, unless another version here has the same. Reading it holds the interpreter's lock."""
        for model in tuple(self._models):
            if reads_alike(manifest, model.manifest):
                return model.encoder
        return read_encoder(manifest, directory)

    async def _hold(self, model: str, version: str) -> tuple[dict[str, Any], int]:
        """Return what the engine says of a version that it holds now, and the number of the connection."""
        await self._link.until_up()
        epoch = self._link.epoch
        _, answer = self._link.ask(Kind.HOLD, json_to_bytes({"model": model, "version": version}))
        return await answer, epoch

    def _release(self, handle: int, epoch: int) -> None:
        if epoch == self._link.epoch:
            self._link.tell(Kind.LET_GO, handle)
