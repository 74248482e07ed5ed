"""The policy version from which drift over all rounds is measured, and which DPO may take as its reference.

Each round is held to the live policy, but limits to the live one compound: a perplexity of 1.5 times the live one's in
each of ten rounds is 58 times that of the first. The anchor stays the same from round to round, so that the rounds
share one budget. A person begins a new budget by naming another version (`policy.gate.anchor`), and the versions that
are published from then on carry it in their manifests.
"""

from __future__ import annotations

from rewardloop.formats.store import ModelStore, StoreError

ANCHOR_NOTE = "anchor"


class UnusableAnchor(Exception):
    """Raised when drift cannot be measured from the anchor."""


def anchor_version(store: ModelStore, parent: str, pinned: str = "") -> str:
    """Return the anchor of the versions that are trained from ``parent``.

    It is the pinned version, or else the one that the parent's manifest names, or else the first of the parent's line.

    Args:
        store: The model store.
        parent: The version that a round starts from.
        pinned: The version that a person named, `policy.gate.anchor`; "" for none.

    Raises:
        UnusableAnchor: If the store does not have the anchor, or its tokens are not those of the parent.
    """
    try:
        named = pinned or store.manifest("policy", parent).notes.get(ANCHOR_NOTE, "")
        version = named or _first_of_line(store, parent)
        ours, theirs = (store.manifest("policy", each) for each in (parent, version))
    except StoreError as error:
        raise UnusableAnchor(f"{error}; --policy.gate.anchor {parent} begins a new budget from the live one") from error
    if ours.files.get("tokenizer.json") != theirs.files.get("tokenizer.json") or ours.text_format != theirs.text_format:
        raise UnusableAnchor(f"policy {version} has other tokens than policy {parent} and cannot be its anchor")
    return version


def _first_of_line(store: ModelStore, version: str) -> str:
    """Follow the parents of a version to one that has none, or whose parent the store has no longer."""
    kept = {str(number) for number in store.versions("policy")}
    seen = {version}
    while (parent := store.manifest("policy", version).parent) in kept - seen and parent is not None:
        version = parent
        seen.add(version)
    return version
