"""swap: the versions of one model in this process, which are loaded, warmed, switched to, drained and freed.

A request leases a version for as long as it needs it. A switch is one assignment on the event loop. Requests that were
admitted before it finish on the old version, and later ones get the new version. A version that is not to stay is
freed when its last lease ends.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Generic, Protocol

import structlog

from rewardloop.formats.store import (
    CorruptVersion,
    Manifest,
    UnsafeVersion,
    UntrustedVersion,
    VersionNotFound,
)
from rewardloop.formats.storing.active import Active, Share
from rewardloop.formats.vocabulary import VERSION_ROLES, VersionRole
from rewardloop.v1 import model_pb2
from rewardloop_server.calls.errors import (
    CorruptVersionError,
    NotLoadable,
    RedisUnavailable,
    RewardloopError,
    UnknownVersion,
    UnsafeVersionError,
    UntrustedVersionError,
    VersionRefused,
    told,
)
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.residents import L, Residents

log = structlog.get_logger()


class Versions(Protocol):
    """The part of a model store from which versions are loaded; see `ModelStore`."""

    def versions(self, model: str) -> list[int]: ...

    def manifest(self, model: str, version: int | str) -> Manifest: ...

    def fetch(self, model: str, version: int | str) -> Path: ...


_MAX_RETRY_S = 10.0
# Of a version whose files are as published. It fails again unless memory or disk was short.
_MAX_NOT_LOADABLE_RETRY_S = 300.0
_MAX_REDIS_PAUSE_S = 2.0


class VersionHost(Generic[L]):
    """Serves one model and follows its pointer.

    Args:
        model: The model's name, such as "reward" or "policy".
        store: Where its versions are.
        load: Called with a manifest and a folder, in one of ``load_threads``. Returns a warm version, or raises
            NotLoadable.
        on_switch: Called after each switch with the manifest before (or None), the new one, and the seconds that the
            new version took to load.
        on_residents: Called after each change with the model and the number of versions in memory by role.
        resident_versions: Most versions in memory, not counting those that are leased and wait to be freed.
        load_threads: Where versions are loaded. None for the event loop's own threads.
        on_refused: Called with the model and the reason for each version that was not taken.
    """

    def __init__(
        self,
        model: str,
        store: Versions,
        load: Callable[[Manifest, Path], L],
        on_switch: Callable[[Manifest | None, Manifest, float], None],
        on_residents: Callable[[str, Mapping[str, int]], None] = lambda model, counts: None,
        resident_versions: int = 4,
        load_threads: Executor | None = None,
        on_refused: Callable[[str, str], None] = lambda model, reason: None,
    ) -> None:
        self.model = model
        self._store = store
        self._load = load
        self._load_threads = load_threads
        self._on_switch = on_switch
        self._on_residents = on_residents
        self._on_refused = on_refused
        self._residents: Residents[L] = Residents(model, resident_versions)
        self._load_s: dict[str, float] = {}  # seconds of loading, of versions that were not active since
        self._refused: dict[str, str] = {}  # the refusal that was last logged, of versions that were refused
        self._warming: str | None = None
        self._one_at_a_time = asyncio.Lock()
        self._switched = asyncio.Event()

    @property
    def active(self) -> Manifest | None:
        return self._residents.active

    @property
    def live(self) -> L | None:
        """The active version itself. Who uses it beyond this turn of the event loop needs a lease."""
        return self._residents.live

    def state(self, version: str) -> model_pb2.VersionState:
        """Return the state of a version in this process."""
        if (state := self._residents.state(version)) is not None:
            return state
        return model_pb2.VERSION_STATE_WARMING if self._warming == version else model_pb2.VERSION_STATE_STORED

    @contextmanager
    def lease(
        self, pin: str | None = None, min_version: int | None = None, key: bytes = b"", *, has_canary: bool = True
    ) -> Iterator[L]:
        """Lease the version that serves a request; it stays in memory until the block ends.

        Without ``pin`` it is the canary if ``key`` falls into the canary's share, else the active version. If only the
        other of the two is ``min_version`` or later, it is that one.

        Args:
            pin: The number or the digest of the resident version to use.
            min_version: The least number that the version may have.
            key: The prompt's bytes.
            has_canary: False to act as if there were no canary.

        Raises:
            NoModel: No version is active.
            UnknownVersion: No version is as asked for.
        """
        with self._residents.lease(pin, min_version, key, has_canary=has_canary) as loaded:
            yield loaded

    @contextmanager
    def lease_shadow(self, key: bytes) -> Iterator[L | None]:
        """Lease the shadow version, or None if there is none or ``key`` is not in its share."""
        with self._residents.lease_shadow(key) as loaded:
            yield loaded

    def takes_shadow(self, key: bytes) -> bool:
        """Return whether `lease_shadow` would give a version."""
        return self._residents.takes_shadow(key)

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Enter the block in which `warm`, `activate`, `assign` and `end` may be called. There is one block at a time.

        A change warms the version, moves the pointer, and then switches. A failure before the pointer has moved
        changes nothing. A failure after it is mended by `follow`, which waits for the block's end. A version that got
        no role in the block is freed.
        """
        async with self._one_at_a_time:
            try:
                yield
            finally:
                self._residents.settle()
                states = self._residents.states()
                self._load_s = {version: seconds for version, seconds in self._load_s.items() if version in states}
                self._on_residents(self.model, Counter(states.values()))

    async def warm(self, version: str) -> Manifest:
        """Load, verify and warm a version beside those that serve, unless it is resident already.

        Raises UnknownVersion or VersionRefused, and then nothing changes.
        """
        if (resident := self._residents.manifest(version)) is not None:
            return resident
        started = time.monotonic()
        self._warming = version
        try:
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(
                self._load_threads, fetch_and_load, self._store, self._load, self.model, version
            )
        except VersionNotFound as error:
            raise UnknownVersion(str(error)) from error
        except VersionRefused as error:
            self._on_refused(self.model, error.reason)
            if self._refused.get(version) != error.message:  # the same files fail in the same way at each attempt
                self._refused[version] = error.message
                fields = {"version": version, "reason": error.reason, "error": error.message}
                if error.__cause__ is not None:
                    fields["cause"] = ascii(str(error.__cause__))[1:-1]
                log.error("version refused", model=self.model, **fields)
            raise
        finally:
            self._warming = None
        self._refused.pop(version, None)
        self._load_s[version] = time.monotonic() - started
        self._residents.add(loaded)
        return loaded.manifest

    def activate(self, version: str) -> None:
        """Serve a warm version from now on, and end the canary and the shadow."""
        previous = self.active
        self._residents.activate(version)
        manifest = self.active
        if manifest is None or manifest is previous:
            return
        seconds = self._load_s.pop(version, 0.0)
        self._on_switch(previous, manifest, seconds)
        log.info(
            "version switched",
            model=self.model,
            version=version,
            previous=previous.version if previous else None,
            seconds=round(seconds, 3),
        )
        self._switched.set()
        self._switched = asyncio.Event()

    def assign(self, role: VersionRole, holder: Share) -> None:
        """Give the role to a warm version."""
        self._residents.assign(role, holder)
        log.info("role given", model=self.model, role=role, version=holder.version, share=holder.share)

    def end(self, role: VersionRole) -> None:
        """End the role, whichever version has it."""
        self._residents.end(role)
        log.info("role ended", model=self.model, role=role)

    async def lose(self, version: str) -> None:
        """Free a version that runs no more, unless it is the active one. `follow` loads it again if it has a role."""
        async with self.changing():
            self._residents.forget(version)

    async def changes(self) -> AsyncIterator[Manifest]:
        """Yield the active manifest once there is one, then the active one after each switch.

        A slow reader gets only the latest of several switches.
        """
        seen: Manifest | None = None
        while True:
            while (current := self.active) is None or current is seen:
                await self._switched.wait()
            seen = current
            yield current

    async def follow(self, pointer: ActivePointer, poll_s: float) -> None:
        """Follow the pointer until cancelled. If no version is active, the store's newest becomes active.

        While Redis is away, what serves goes on serving, and a process that serves nothing yet follows the pointer's
        copy in the store. If Redis is away or a version does not load, that is tried again at growing intervals. A
        version that fails again in the same way is not logged again. A pointer that moves on from a version which does
        not load is followed at once.
        """
        pause, retry_at, given_up = poll_s, 0.0, None
        logged = ""
        while True:
            wanted: Active | None = None
            try:
                async with self.changing():
                    wanted = await self._wanted(pointer)
                    if wanted is not None and (wanted != given_up or time.monotonic() >= retry_at):
                        await self._converge(wanted)
                        pause, given_up, logged = poll_s, None, ""
            except RewardloopError as error:
                longest = _MAX_NOT_LOADABLE_RETRY_S if isinstance(error, NotLoadable) else _MAX_RETRY_S
                pause = min(2 * (pause if wanted in (None, given_up) else poll_s), longest)
                retry_at, given_up = time.monotonic() + pause, wanted
                if not isinstance(error, VersionRefused) or str(error) != logged:
                    log.warning("cannot follow the pointer", model=self.model, error=str(error), retry_s=pause)
                logged = str(error)
            await asyncio.sleep(min(pause, _MAX_REDIS_PAUSE_S) if wanted is None else poll_s)

    async def _wanted(self, pointer: ActivePointer) -> Active | None:
        """Return the pointer, or the store's copy if Redis is away. A first pointer begins at the newest version."""
        try:
            active = await pointer.read(self.model)
        except RedisUnavailable:
            if self.active is not None or (kept := await pointer.stored(self.model)) is None:
                raise
            return kept
        if active is None and (stored := await asyncio.to_thread(self._store.versions, self.model)):
            await pointer.initialise(self.model, str(stored[-1]))
            active = await pointer.read(self.model)
        return active

    async def _converge(self, wanted: Active) -> None:
        """Load what the pointer names. A canary or shadow that does not load does not keep others from their roles."""
        if self.active is None or self.active.version != wanted.version:
            await self.warm(wanted.version)
            self.activate(wanted.version)
        failures: list[RewardloopError] = []
        for role in VERSION_ROLES:
            holder = wanted.beside(role)
            if holder == self._residents.beside(role):
                continue
            if holder is None:
                self.end(role)
                continue
            try:
                await self.warm(holder.version)
                self.assign(role, holder)
            except RewardloopError as error:
                failures.append(error)
        if failures:
            raise failures[0]


def fetch_and_load(store: Versions, load: Callable[[Manifest, Path], L], model: str, version: str) -> L:
    """Fetch and load a version. Raises VersionNotFound, and a RewardloopError for every other failure."""
    try:
        return load(store.manifest(model, version), store.fetch(model, version))
    except CorruptVersion as error:
        raise refusal(error) from error
    except (VersionNotFound, RewardloopError):
        raise
    except Exception as error:  # any exception that a file causes is that version's failure, not the process's
        log.exception("loading failed", model=model, version=version)
        raise NotLoadable(f"{model} {version} does not load: {told(error)}") from error


def refusal(error: CorruptVersion) -> VersionRefused:
    """Return the error that a caller gets for a version that the store refuses."""
    if isinstance(error, UntrustedVersion):
        return UntrustedVersionError(str(error))
    return UnsafeVersionError(str(error)) if isinstance(error, UnsafeVersion) else CorruptVersionError(str(error))
