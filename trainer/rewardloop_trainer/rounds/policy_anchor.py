"""The anchor: the policy version that every round is held to, and the budget of KL that the rounds have together.

If each round were held to the version it starts from, many small steps could go anywhere. The anchor stays until a
person names another one (``policy.anchor``), after comparing the live version with it.
"""

from __future__ import annotations

from rewardloop.formats.store import Manifest, ModelStore, StoreError, VersionNotFound
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.start import start_from_store
from rewardloop_trainer.vocabulary import Reason

ANCHOR_NOTE = "anchor"


class UnusableAnchor(ValueError):
    """Raised when the version that a person named as the anchor cannot be a reference for the live version."""


def anchor_of(store: ModelStore, version: str, named: str = "") -> str:
    """Return the version that learning from ``version`` is held to.

    It is the one that a person named; else the one that ``version`` itself was held to; else the oldest ancestor of
    ``version`` that the store still has, which may be ``version`` itself.

    Args:
        store: The model store.
        version: The version that a round starts from.
        named: The version that a person named; "" for none.

    Raises:
        UnusableAnchor: If the named version has another text format than ``version``, or if the store does not have
            the named version or the one that ``version`` was held to.
        StoreError: If ``version`` is not in the store.
    """
    manifest = store.manifest("policy", version)
    anchor = named or manifest.notes.get(ANCHOR_NOTE, "")
    if not anchor:
        return _oldest_ancestor(store, version, manifest)
    try:
        chosen = store.manifest("policy", anchor)
    except StoreError as error:
        raise UnusableAnchor(f"anchor {anchor} of policy {version}: {error}: name another as policy.anchor") from error
    if chosen.text_format != manifest.text_format:
        raise UnusableAnchor(f"policy.anchor {anchor}: its text format is not that of version {version}")
    return anchor


def reference_of(store: ModelStore, anchor: str, version: str) -> Reference | None:
    """Return the anchor as the reference of training from ``version``; None if it is this version."""
    if anchor == version:
        return None
    start = start_from_store(store, anchor, max_length=0)
    return Reference(start.digest, start.load)


def over_budget(kl: float | None, budget: float, anchor: str) -> Reason | None:
    """Return why a policy may not be used that is ``kl`` nats per response from the anchor; None if it may.

    A KL that was not measured, or that is not a number, is over the budget.
    """
    if kl is not None and kl <= budget:
        return None
    measured = "an unknown KL" if kl is None else f"{kl:.1f} nats per response"
    return Reason(
        "kl_budget",
        f"{measured} from anchor version {anchor}, and the budget (policy.kl_budget) is {budget:g}: compare the live "
        "version with the anchor; if it is good, name the live version as policy.anchor to count from there, else go "
        "back to an earlier version",
    )


def _oldest_ancestor(store: ModelStore, version: str, manifest: Manifest) -> str:
    seen = {version}
    while (parent := manifest.parent) is not None and parent not in seen and _has(store, parent):
        seen.add(parent)
        version, manifest = parent, store.manifest("policy", parent)
    return version


def _has(store: ModelStore, version: str) -> bool:
    try:
        store.manifest("policy", version)
    except VersionNotFound:
        return False
    return True
