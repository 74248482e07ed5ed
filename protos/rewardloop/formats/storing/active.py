"""A model's pointer: the versions that serve, and what people decided about them.

Redis holds it (`rewardloop.formats.keys`), and the model store holds a copy (`pointer_file`). Every change counts the
epoch up. If two places differ, the higher epoch is the later decision, and the other place is repaired.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from rewardloop.formats.vocabulary import VERSION_ROLES, VersionRole

MAX_PREVIOUS = 20
_MAX_REJECTED = 100
_MAX_REASON_CHARS = 1000


class CorruptPointer(ValueError):
    """Raised for a text that is no pointer."""


@dataclass(frozen=True, slots=True)
class Share:
    """A version beside the active one, and its share of the requests: above 0, at most 1."""

    version: str
    share: float


@dataclass(frozen=True, slots=True)
class Active:
    """A model's pointer. Two are equal if the same versions serve and the same promotions are held.

    Attributes:
        version: The active version.
        previous: The versions that rollbacks go back to, newest first.
        canary: The canary and its share, if there is one.
        shadow: The shadow and its share, if there is one.
        is_held: A rollback holds the promotions of leaders.
        rejected: Versions that a person rolled back and no person has promoted since, the latest first.
        epoch: How often the pointer has changed; 0 if an earlier release wrote it, which did not count.
        promoted_by: The epoch of the latest leader that has promoted a version; 0 if none has.
        changed_at: When it was changed, ISO 8601 in UTC.
        reason: Why, in the words of who changed it.
    """

    version: str
    previous: tuple[str, ...] = ()
    canary: Share | None = None
    shadow: Share | None = None
    is_held: bool = False
    rejected: tuple[str, ...] = field(default=(), compare=False)
    epoch: int = field(default=0, compare=False)
    promoted_by: int = field(default=0, compare=False)
    changed_at: str = field(default="", compare=False)
    reason: str = field(default="", compare=False)

    @property
    def rollback_target(self) -> str | None:
        """The version that was active before this one."""
        return self.previous[0] if self.previous else None

    def beside(self, role: VersionRole) -> Share | None:
        """Return the holder of the role."""
        return self.canary if role == "canary" else self.shadow

    def is_as_late_as(self, other: Active) -> bool:
        """Return whether this pointer may be followed by one who has followed the other.

        Of two with one epoch, which two places made apart, a person's hold counts more than the time. A pointer without
        an epoch was written by an earlier release, so the time decides.
        """
        if self.epoch == 0 < other.epoch:
            return self.changed_at > other.changed_at
        return self._rank >= other._rank

    @property
    def _rank(self) -> tuple[int, bool, str, str]:
        return self.epoch, self.is_held, self.changed_at, self.version

    def to_json(self) -> str:
        """Return the text that Redis and the store hold."""
        value: dict[str, Any] = {
            "version": self.version,
            "previous": list(self.previous),
            "changed_at": self.changed_at,
            "reason": self.reason,
            "epoch": self.epoch,
        }
        if self.is_held:
            value["held"] = True
        if self.rejected:
            value["rejected"] = list(self.rejected)
        if self.promoted_by:
            value["promoted_by"] = self.promoted_by
        for role in VERSION_ROLES:
            if (holder := self.beside(role)) is not None:
                value[role] = {"version": holder.version, "share": holder.share}
        return json.dumps(value)

    @classmethod
    def from_json(cls, text: str | bytes) -> Active:
        """Read what `to_json` or an earlier release wrote. Raises CorruptPointer."""
        try:
            value = json.loads(text)
            return cls(
                _text(value["version"]),
                tuple(map(_text, value["previous"])),
                _share(value.get("canary")),
                _share(value.get("shadow")),
                bool(value.get("held")),
                tuple(map(_text, value.get("rejected", ()))),
                int(value.get("epoch", 0)),
                int(value.get("promoted_by", 0)),
                _text(value.get("changed_at", "")),
                _text(value.get("reason", "")),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptPointer(f"a model's pointer cannot be read: {type(error).__name__}") from error

    def promoted(self, version: str, reason: str, leader_epoch: int = 0) -> Active:
        """Return the pointer after a promotion, or this one if the promotion changes nothing.

        It ends canary, shadow and hold. A person's promotion also ends the version's rejection. ``leader_epoch`` is 0
        unless a leading trainer promotes.
        """
        rejected = self.rejected if leader_epoch else tuple(each for each in self.rejected if each != version)
        promoted_by = leader_epoch or self.promoted_by
        if version == self.version:
            same = replace(self, canary=None, shadow=None, is_held=False)
            if same == self and (rejected, promoted_by) == (self.rejected, self.promoted_by):
                return self
            previous = self.previous
        else:
            previous = (self.version, *self.previous)[:MAX_PREVIOUS]
        return self._changed(
            reason,
            version=version,
            previous=previous,
            canary=None,
            shadow=None,
            is_held=False,
            rejected=rejected,
            promoted_by=promoted_by,
        )

    def rolled_back(self, reason: str) -> Active:
        """Return the pointer after a person's rollback, which rejects the active version and holds promotions.

        The target leaves ``previous``, so that a second rollback goes further back and not forward again. Raises
        ValueError if no version was active before.
        """
        if (target := self.rollback_target) is None:
            raise ValueError("no version was active before")
        rejected = (self.version, *(each for each in self.rejected if each != self.version))
        return self._changed(
            reason,
            version=target,
            previous=self.previous[1:],
            canary=None,
            shadow=None,
            is_held=True,
            rejected=rejected[:_MAX_REJECTED],
        )

    def assigned(self, role: VersionRole, holder: Share | None, reason: str) -> Active:
        """Return the pointer after the role was given to ``holder``, or ended."""
        return self._changed(reason, **{role: holder})

    def adopted(self, known: Active | None, promoted_by: int) -> Active:
        """Return a pointer of an earlier release with an epoch, and with what ``known`` says of rejected versions."""
        rejected = () if known is None else tuple(each for each in known.rejected if each != self.version)
        return replace(self, epoch=(known.epoch if known else 0) + 1, rejected=rejected, promoted_by=promoted_by)

    def _changed(self, reason: str, **changes: Any) -> Active:
        reason = reason[:_MAX_REASON_CHARS]
        return replace(self, epoch=self.epoch + 1, changed_at=now(), reason=reason, **changes)


def first_pointer(version: str, reason: str, leader_epoch: int = 0) -> Active:
    """Return the first pointer of a model."""
    reason = reason[:_MAX_REASON_CHARS]
    return Active(version, epoch=1, promoted_by=leader_epoch, changed_at=now(), reason=reason)


def later_of(one: Active | None, other: Active | None) -> Active | None:
    """Return the pointer that was decided later; None if there is none."""
    if one is None or other is None:
        return one or other
    return one if one.is_as_late_as(other) else other


def now() -> str:
    """Return the present time as pointers have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _share(value: Mapping[str, Any] | None) -> Share | None:
    return None if value is None else Share(_text(value["version"]), float(value["share"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
