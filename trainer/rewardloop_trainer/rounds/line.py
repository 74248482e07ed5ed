"""Follows the line of a version: the version, its parent and so on, also through versions that were pruned."""

from __future__ import annotations

from collections.abc import Iterator

from rewardloop.formats.store import Manifest, ModelStore, StoreError


def line_of(store: ModelStore, model: str, version: str) -> Iterator[Manifest]:
    """Yield the manifest of a version and of its ancestors, as far as the store remembers them.

    Raises:
        StoreError: If the manifest of the version itself cannot be read.
    """
    manifest = store.manifest(model, version)
    seen = {manifest.version}
    yield manifest
    while manifest.parent is not None and manifest.parent not in seen:
        try:
            manifest = store.remembered(model, manifest.parent)
        except StoreError:
            return
        seen.add(manifest.version)
        yield manifest


def first_of_line(store: ModelStore, model: str, version: str) -> Manifest:
    """Return the oldest ancestor of a version that the store still has; the version itself if there is no other.

    Raises:
        StoreError: If the manifest of the version itself cannot be read.
    """
    kept = {str(number) for number in store.versions(model)}
    return [each for each in line_of(store, model, version) if each.version in kept | {version}][-1]
