"""swap: one model's versions in this process - load beside, warm, switch, drain, free.

A version is leased for as long as a request needs it. The switch is one assignment on the event loop: requests
admitted before it finish on the old version, requests after it get the new one, and the old version is freed when
its last lease ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

from rewardloop.formats.store import CorruptVersion, Manifest, ModelStore, VersionNotFound
from rewardloop.v1 import model_pb2
from rewardloop_server.errors import CorruptVersionError, NoModel, RewardloopError, UnknownVersion
from rewardloop_server.pointer import ActivePointer

log = structlog.get_logger()


class Loaded(Protocol):
    """A version in memory, warm."""

    @property
    def manifest(self) -> Manifest: ...

    def close(self) -> None:
        """Free its memory; called once, after its last lease."""


L = TypeVar("L", bound=Loaded)


class _Slot(Generic[L]):
    """A loaded version and how many leases it has; the host itself holds one while it is active."""

    def __init__(self, loaded: L) -> None:
        self.loaded = loaded
        self.leases = 1


class VersionHost(Generic[L]):
    """Serves one model ("reward" or "policy") and follows the active pointer.

    ``load(manifest, directory)`` runs in a thread, returns a warm version or raises NotLoadable.
    ``on_switch(previous or None, manifest, seconds)`` is told of each switch.
    """

    def __init__(
        self,
        model: str,
        store: ModelStore,
        load: Callable[[Manifest, Path], L],
        on_switch: Callable[[Manifest | None, Manifest, float], None],
    ) -> None:
        self.model = model
        self._store = store
        self._load = load
        self._on_switch = on_switch
        self._slot: _Slot[L] | None = None
        self._draining: dict[str, _Slot[L]] = {}
        self._warming: str | None = None
        self._one_at_a_time = asyncio.Lock()
        self._switched = asyncio.Condition()

    @property
    def active(self) -> Manifest | None:
        return self._slot.loaded.manifest if self._slot else None

    def state(self, version: str) -> model_pb2.VersionState:
        """State of a version in this process."""
        if self.active is not None and self.active.version == version:
            return model_pb2.VERSION_STATE_ACTIVE
        if self._warming == version:
            return model_pb2.VERSION_STATE_WARMING
        if version in self._draining:
            return model_pb2.VERSION_STATE_DRAINING
        return model_pb2.VERSION_STATE_STORED

    @contextmanager
    def lease(self) -> Iterator[L]:
        """The active version, kept alive until the block ends. Raises NoModel when none is warm."""
        slot = self._slot
        if slot is None:
            raise NoModel(f"no warm {self.model} model", retry_after_ms=500)
        slot.leases += 1
        try:
            yield slot.loaded
        finally:
            self._release(slot)

    async def activate(self, version: str) -> Manifest:
        """Load, verify and warm ``version`` beside the running one, then switch. No-op when it is active.

        Raises UnknownVersion, CorruptVersionError or NotLoadable; the running version stays.
        """
        async with self._one_at_a_time:
            return await self._activate(version)

    @asynccontextmanager
    async def switching(self, version: str) -> AsyncIterator[Manifest]:
        """Activate ``version`` for the block, and go back at once to the version before it when the block fails.

        No other switch happens meanwhile. The pointer is moved within the block: between a switch and the pointer's
        move, `follow` would read the old pointer and undo the switch. Raises as `activate` does.
        """
        async with self._one_at_a_time:
            before = self._slot
            if before is not None:
                before.leases += 1
            try:
                yield await self._activate(version)
            except BaseException:
                if before is not None and self._slot is not before:
                    before.leases += 1
                    await self._switch(before, 0.0)
                raise
            finally:
                if before is not None:
                    self._release(before)

    async def changes(self) -> AsyncIterator[Manifest]:
        """The active manifest (once there is one), then each one after a switch; skips what a slow reader missed."""
        seen: Manifest | None = None
        while True:
            async with self._switched:
                while (current := self.active) is None or current is seen:
                    await self._switched.wait()
            seen = current
            yield current

    async def follow(self, pointer: ActivePointer, poll_s: float) -> None:
        """Converge on the active pointer until cancelled; a store's newest version becomes active where none is.

        Redis away or a version that does not load: logged, retried, the running version stays.
        """
        delay = poll_s
        while True:
            try:
                async with self._one_at_a_time:
                    if (wanted := await self._wanted(pointer)) is not None:
                        await self._activate(wanted)
                delay = poll_s
            except RewardloopError as error:
                delay = min(delay * 2, 10.0)
                log.warning("cannot follow the active version", model=self.model, error=str(error), retry_s=delay)
            await asyncio.sleep(delay)

    async def _wanted(self, pointer: ActivePointer) -> str | None:
        if (active := await pointer.read(self.model)) is not None:
            return active.version
        stored = await asyncio.to_thread(self._store.versions, self.model)
        if not stored:
            return None
        await pointer.initialise(self.model, str(stored[-1]))
        active = await pointer.read(self.model)
        return active.version if active else None

    async def _activate(self, version: str) -> Manifest:
        if self.active is not None and self.active.version == version:
            return self.active
        started = time.monotonic()
        self._warming = version
        try:
            loaded = await asyncio.to_thread(self._fetch_and_load, version)
        except VersionNotFound as error:
            raise UnknownVersion(str(error)) from error
        except CorruptVersion as error:
            raise CorruptVersionError(str(error)) from error
        finally:
            self._warming = None
        await self._switch(_Slot(loaded), time.monotonic() - started)
        return loaded.manifest

    def _fetch_and_load(self, version: str) -> L:
        return self._load(self._store.manifest(self.model, version), self._store.fetch(self.model, version))

    async def _switch(self, slot: _Slot[L], seconds: float) -> None:
        """Serve ``slot`` from now on; one of its leases is the host's."""
        old, self._slot = self._slot, slot
        previous = old.loaded.manifest if old else None
        manifest = slot.loaded.manifest
        self._draining.pop(manifest.version, None)
        self._on_switch(previous, manifest, seconds)
        log.info(
            "version switched",
            model=self.model,
            version=manifest.version,
            previous=previous.version if previous else None,
            seconds=round(seconds, 3),
        )
        if old is not None:
            self._draining[old.loaded.manifest.version] = old
            self._release(old)
        async with self._switched:
            self._switched.notify_all()

    def _release(self, slot: _Slot[L]) -> None:
        slot.leases -= 1
        if slot.leases == 0:
            self._draining.pop(slot.loaded.manifest.version, None)
            slot.loaded.close()
