"""The versions of one model that are in memory, and the choice among them for a request.

Everything here happens on the event loop without waiting, so a request sees one consistent state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.store import Manifest
from rewardloop.formats.storing.active import Share
from rewardloop.formats.vocabulary import VERSION_ROLES, VersionRole
from rewardloop.v1 import model_pb2
from rewardloop_server.calls.errors import NoModel, UnknownVersion
from rewardloop_server.calls.vocabulary import RESIDENT_ROLES

_STATES: dict[str, model_pb2.VersionState] = {
    role: getattr(model_pb2, f"VERSION_STATE_{role.upper()}") for role in RESIDENT_ROLES
}


class Loaded(Protocol):
    """A warm version in memory."""

    @property
    def manifest(self) -> Manifest: ...

    def close(self) -> None:
        """Free the memory. Called once, after the last lease."""


L = TypeVar("L", bound=Loaded)


class _Slot(Generic[L]):
    """A loaded version and the number of its leases. `Residents` itself holds one while the version is to stay."""

    __slots__ = ("leases", "loaded")

    def __init__(self, loaded: L) -> None:
        self.loaded = loaded
        self.leases = 1

    @property
    def version(self) -> str:
        return self.loaded.manifest.version


class Residents(Generic[L]):
    """The versions in memory: the active one, the canary, the shadow, and those that are kept warm.

    A version stays warm if it had a role lately and shares its graph with a version that has one, as a trunk and its
    deltas do. With those that have a role, at most ``keep`` versions stay. `settle` frees the others, each after its
    last lease.
    """

    def __init__(self, model: str, keep: int) -> None:
        self._model = model
        self._keep = keep
        self._slots: dict[str, _Slot[L]] = {}
        self._draining: dict[str, _Slot[L]] = {}
        self._active: _Slot[L] | None = None
        self._beside: dict[VersionRole, Share] = {}
        self._recent: list[str] = []  # versions that had a role, the latest first

    @property
    def active(self) -> Manifest | None:
        return self._active.loaded.manifest if self._active else None

    @property
    def live(self) -> L | None:
        """The active version itself. Who uses it beyond this turn of the event loop needs a lease."""
        return self._active.loaded if self._active else None

    def beside(self, role: VersionRole) -> Share | None:
        """Return the holder of the role."""
        return self._beside.get(role)

    def manifest(self, version: str) -> Manifest | None:
        """Return the manifest of a version in memory, or None.

        A draining version becomes resident again by this, so that it need not be loaded anew.
        """
        if (slot := self._draining.pop(version, None)) is not None:
            slot.leases += 1
            self._slots[version] = slot
        found = self._slots.get(version)
        return found.loaded.manifest if found else None

    def add(self, loaded: L) -> None:
        """Take over a loaded version. The next `settle` frees it unless it gets a role before."""
        self._slots[loaded.manifest.version] = _Slot(loaded)

    def activate(self, version: str) -> None:
        """Serve a resident version from now on, and end the canary and the shadow."""
        self._active = self._slots[version]
        self._beside.clear()

    def assign(self, role: VersionRole, holder: Share) -> None:
        """Give the role to a resident version."""
        if holder.version not in self._slots:
            raise KeyError(holder.version)
        self._beside[role] = holder

    def end(self, role: VersionRole) -> None:
        """End the role, whichever version has it."""
        self._beside.pop(role, None)

    def forget(self, version: str) -> None:
        """End the roles of a version, and do not keep it warm, unless it is the active one."""
        if self._active is None or self._active.version != version:
            self._beside = {role: holder for role, holder in self._beside.items() if holder.version != version}
            self._recent = [each for each in self._recent if each != version]

    def settle(self) -> None:
        """Let go of every version that has no reason to stay."""
        held = list(self._with_roles().values())
        graphs = {_graph(self._slots[version]) for version in held}
        warm = [v for v in self._recent if v not in held and _graph(self._slots[v]) in graphs]
        self._recent = [*dict.fromkeys(held), *warm][: max(self._keep, len(set(held)))]
        for version in self._slots.keys() - set(self._recent):
            slot = self._slots.pop(version)
            self._draining[version] = slot
            self._release(slot)

    def states(self) -> dict[str, str]:
        """Return the role of each version in memory, in the order active, canary, shadow, warm, draining."""
        states: dict[str, str] = {}
        for role, version in self._with_roles().items():
            states.setdefault(version, role)
        for version in self._slots:
            states.setdefault(version, "warm")
        for version in self._draining:
            states.setdefault(version, "draining")
        return states

    def state(self, version: str) -> model_pb2.VersionState | None:
        """Return the version's state, or None if it is not in memory."""
        return _STATES.get(self.states().get(version, ""))

    @contextmanager
    def lease(self, pin: str | None, min_version: int | None, key: bytes, *, has_canary: bool = True) -> Iterator[L]:
        """Lease the version that serves a request; see `VersionHost.lease`."""
        with self._leased(self._pick(pin, min_version, key, has_canary=has_canary)) as loaded:
            yield loaded

    @contextmanager
    def lease_shadow(self, key: bytes) -> Iterator[L | None]:
        """Lease the shadow version, or None if there is none or ``key`` is not in its share."""
        if not self.takes_shadow(key):
            yield None
            return
        with self._leased(self._slots[self._beside["shadow"].version]) as loaded:
            yield loaded

    def takes_shadow(self, key: bytes) -> bool:
        """Return whether there is a shadow and ``key`` falls into its share."""
        shadow = self._beside.get("shadow")
        return shadow is not None and position(key, "shadow") < shadow.share

    @contextmanager
    def _leased(self, slot: _Slot[L]) -> Iterator[L]:
        slot.leases += 1
        try:
            yield slot.loaded
        finally:
            self._release(slot)

    def _release(self, slot: _Slot[L]) -> None:
        slot.leases -= 1
        if slot.leases == 0:
            self._draining.pop(slot.version, None)
            slot.loaded.close()

    def _pick(self, pin: str | None, min_version: int | None, key: bytes, *, has_canary: bool) -> _Slot[L]:
        """Choose the version as `VersionHost.lease` describes. Raises NoModel or UnknownVersion."""
        if self._active is None:
            raise NoModel(f"no warm {self._model} model", retry_after_ms=500)
        if pin is not None:
            choice: Sequence[_Slot[L]] = [
                s for s in self._slots.values() if pin in (s.version, s.loaded.manifest.digest)
            ]
        elif (canary := self._beside.get("canary")) is None or not has_canary:
            choice = (self._active,)
        else:
            choice = (self._active, self._slots[canary.version])
            if position(key, "canary") < canary.share:
                choice = choice[::-1]
        for slot in choice:
            if min_version is None or int(slot.version) >= min_version:
                return slot
        wanted = f"version {pin!r}" if pin is not None else f"version {min_version} or later"
        warm = ", ".join(f"{version} ({state})" for version, state in self.states().items() if state != "draining")
        named = "" if self._model == REWARD else f" --model {self._model}"
        hint = f"; 'rewardloop models shadow {pin}{named}' makes it warm" if pin is not None and pin.isdecimal() else ""
        raise UnknownVersion(f"{wanted} is not warm here; warm: {warm}{hint}")

    def _with_roles(self) -> dict[str, str]:
        """Return the versions with a role, by role: active, canary, shadow."""
        roles = {"active": self._active.version} if self._active else {}
        roles.update({role: self._beside[role].version for role in VERSION_ROLES if role in self._beside})
        return roles


def position(key: bytes, purpose: str) -> float:
    """Return a number in [0, 1) that is the same for a key on every server, and independent between purposes."""
    digest = hashlib.blake2b(key, digest_size=8, person=purpose.encode()).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def _graph(slot: _Slot[L]) -> str:
    """Return the digest of the version's graph. Versions over one graph share their session."""
    manifest = slot.loaded.manifest
    return manifest.trunk.digest if manifest.trunk else manifest.digest
