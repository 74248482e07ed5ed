"""The policy version that every round is held to as its reference, and from which drift over all rounds is measured.

If each round were held to the live policy alone, many small steps could go anywhere. Limits to the live policy compound
too: a perplexity of 1.5 times the live one's in each of ten rounds is 58 times that of the first. The anchor stays the
same from round to round, so that the rounds share one budget. A person begins a new budget by naming another version
(`policy.gate.anchor`), and the versions that are published from then on carry it in their manifests.
"""

from __future__ import annotations

from rewardloop.formats.store import TOKENIZER, Manifest, ModelStore, StoreError
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.start import start_from_store
from rewardloop_trainer.rounds.line import first_of_line
from rewardloop_trainer.vocabulary import Reason

ANCHOR_NOTE = "anchor"


class UnusableAnchor(ValueError):
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
        version = named or first_of_line(store, "policy", parent).version
        ours, theirs = (store.manifest("policy", each) for each in (parent, version))
    except StoreError as error:
        raise UnusableAnchor(f"{error}; --policy.gate.anchor {parent} begins a new budget from the live one") from error
    if not has_same_tokens(ours, theirs):
        raise UnusableAnchor(f"policy {version} has other tokens than policy {parent} and cannot be its anchor")
    return version


def has_same_tokens(one: Manifest, other: Manifest) -> bool:
    """Whether two policies read and write the same tokens, laid out in the same way."""
    return one.files.get(TOKENIZER) == other.files.get(TOKENIZER) and one.text_format == other.text_format


def reference_of(store: ModelStore, anchor: str, start: str) -> Reference | None:
    """Return the anchor as a policy to compare with the one of ``start``; None if it is this version."""
    if anchor == start:
        return None
    policy = start_from_store(store, anchor, max_length=0)
    return Reference(anchor, policy.digest, policy.load)


def used_up(store: ModelStore, anchor: str, start: str, most_kl: float) -> Reason | None:
    """Return why nothing can be trained from ``start``: its own gate found it at the end of the budget; else None."""
    manifest = store.manifest("policy", start)
    kl = manifest.metrics.get("gate_anchor_kl", 0.0)
    if manifest.notes.get(ANCHOR_NOTE) != anchor or kl < most_kl:
        return None
    return Reason(
        "anchor",
        f"the live policy, {start}, is too far from the anchor policy, {anchor}: KL {kl:.1f} nats a response, of "
        f"{most_kl:g}; the budget of all rounds since then is used up; --policy.gate.anchor N begins a new one from "
        f"version N: compare the two, and name {start} if it is good",
    )
