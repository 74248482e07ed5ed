"""Who labels: a caller together with the name that it gives the labeller."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rewardloop.formats.labelling.tasks import MOST_LABELLER_CHARACTERS
from rewardloop_server.calls.errors import InvalidRequest, Violation
from rewardloop_server.doors.callers import PRESENT


@dataclass(frozen=True, slots=True)
class Labeller:
    """A labeller.

    Attributes:
        name: The id that the caller gives, or the caller's own name.
        caller: The authenticated caller; empty without authentication.
    """

    name: str
    caller: str

    @property
    def key(self) -> str:
        """The hex digits by which Redis knows the labeller."""
        return hashlib.blake2b(f"{self.caller}\0{self.name}".encode(), digest_size=12).hexdigest()


def labeller_of(name: str) -> Labeller:
    """Return who labels in the present call. Raises InvalidRequest if nobody is named."""
    caller = caller_of()
    if not 1 <= len(name or caller) <= MOST_LABELLER_CHARACTERS:
        raise InvalidRequest([Violation("labeller", f"not 1 to {MOST_LABELLER_CHARACTERS} characters")])
    return Labeller(name or caller, caller)


def caller_of() -> str:
    """Return the name of the present call's caller; empty without authentication."""
    credential = PRESENT.get()
    return "" if credential is None else credential.caller


def sees_everybody() -> bool:
    """Return whether the present call's caller may know what each labeller has done."""
    credential = PRESENT.get()
    return credential is None or not credential.roles.isdisjoint({"view", "admin"})
