"""Which versions of a model must stay, and why."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_trainer.evaluation.gate_anchor import GATE_ANCHOR
from rewardloop_trainer.rounds.line import first_of_line
from rewardloop_trainer.rounds.policy_anchor import ANCHOR_NOTE


@dataclass(frozen=True, slots=True)
class Pointer:
    """What Redis says of a model: the active version, those before it, newest first, and those beside it by role."""

    version: str
    previous: tuple[str, ...]
    beside: Mapping[str, str]

    @classmethod
    def of(cls, raw: bytes) -> Pointer:
        """Read the value of `keys.ACTIVE`. Raises ValueError, KeyError or TypeError if it is none."""
        value: dict[str, Any] = json.loads(raw)
        beside = {role: str(value[role]["version"]) for role in ("canary", "shadow") if value.get(role)}
        return cls(str(value["version"]), tuple(map(str, value["previous"])), beside)


def reasons_to_keep(
    store: ModelStore, model: str, pointer: Pointer, *, newest: int, rollbacks: int, pins: Collection[str]
) -> dict[str, str]:
    """Return the versions that stay, each with the reason.

    Args:
        store: The model store.
        model: The model's name.
        pointer: What is in use.
        newest: How many of the newest versions stay.
        rollbacks: How many of the versions stay that rollbacks go back to.
        pins: Versions that a person names.

    Raises:
        StoreError: If the manifest of a version that stays cannot be read.
    """
    there = [str(number) for number in store.versions(model)]
    reasons = {pointer.version: "active"}
    for role, version in pointer.beside.items():
        reasons.setdefault(version, role)
    for version in pointer.previous[:rollbacks]:
        reasons.setdefault(version, "a rollback goes back to it")
    for version in pins:
        reasons.setdefault(version, "pinned")
    for version in there:
        if int(version) > int(pointer.version):
            reasons.setdefault(version, "newer than the active version")
    for version in there[-newest:]:
        reasons.setdefault(version, f"one of the {newest} newest")
    reasons = {version: reason for version, reason in reasons.items() if version in there}
    _add_needed(store, model, reasons, there)
    return reasons


def _add_needed(store: ModelStore, model: str, reasons: dict[str, str], there: Collection[str]) -> None:
    """Add what the versions that stay need, and what that needs in turn."""
    waiting = list(reasons)
    while waiting:
        version = waiting.pop()
        manifest = store.manifest(model, version)
        for needed, reason in _needs(store, model, manifest).items():
            if needed in there and needed not in reasons:
                reasons[needed] = f"{reason} of version {version}"
                waiting.append(needed)


def _needs(store: ModelStore, model: str, manifest: Manifest) -> dict[str, str]:
    needs = {first_of_line(store, model, manifest.version).version: "the first of the line"}
    if manifest.trunk is not None:
        needs[manifest.trunk.version] = "the graph"
    if anchor := manifest.notes.get(ANCHOR_NOTE):
        needs[anchor] = "the anchor"
    if (known := store.read_file(model, manifest.version, GATE_ANCHOR)) is not None:
        needs[str(json.loads(known)["best"] or manifest.version)] = "the best so far"
    return needs
