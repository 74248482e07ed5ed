"""The versions that learned from signals, by the part of the ledger that their manifests name and by their parents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.formats.store import Manifest, ModelStore, StoreError
from rewardloop_trainer.archive.segment_files import order

log = structlog.get_logger()

ERASURES_NOTE = "erasures"  # in a manifest: how many erasures the ledger had behind it when the round began


def versions_that_learned(
    store: ModelStore, first_places: Mapping[str, str], number: int
) -> tuple[tuple[str, str, bool], ...]:
    """Return model, number and directness of each version that learned, or may have learned, from signals.

    A version did so directly if the ledger held one of the signals in its range, and indirectly if it descends from
    one that did. A policy learns from the signals of the aspect "reward". What was deleted and left its manifest is
    named, too.

    Args:
        store: The model store.
        first_places: The lowest place of the signals in the ledger, by aspect.
        number: Which erasure of the ledger it is, from 1. Rounds that began after it did not see the signals.
    """
    found: list[tuple[str, str, bool]] = []
    for model in sorted({*store.models(), *first_places} | ({POLICY} if REWARD in first_places else set())):
        first = first_places.get(REWARD if model == POLICY else model)
        if first is None:
            continue
        manifests = {each.version: each for each in _manifests(store, model)}
        own = {version for version, each in manifests.items() if _learned(each, first, number)}
        found += [(model, version, version in own) for version in manifests if _descends(version, manifests, own)]
    return tuple(found)


def _learned(manifest: Manifest, first: str, number: int) -> bool:
    data = manifest.data
    if data is None or order(data.last_stream_id or "0") < order(first):
        return False
    try:
        return int(manifest.notes.get(ERASURES_NOTE, 0)) < number
    except ValueError:
        return True


def _descends(version: str | None, manifests: Mapping[str, Manifest], own: Iterable[str]) -> bool:
    seen: set[str] = set()
    while version is not None and version not in seen:
        if version in own:
            return True
        seen.add(version)
        version = manifests[version].parent if version in manifests else None
    return False


def _manifests(store: ModelStore, model: str) -> list[Manifest]:
    """Return the manifests of a model's versions, also of deleted ones, in ascending order."""
    found = []
    for version in sorted({*store.versions(model), *store.pruned(model)}):
        try:
            found.append(store.remembered(model, version))
        except StoreError as error:
            log.warning(
                "a version cannot be read, and may have learned", model=model, version=version, reason=str(error)
            )
    return found
