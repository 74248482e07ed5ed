"""The pages of the console, in the order of its navigation, and the roles that see each."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

PREFIX = "/console"
OIDC = f"{PREFIX}/oidc"  # below it, OpenID Connect comes and goes


@dataclass(frozen=True, slots=True)
class Place:
    """A page in the navigation.

    Attributes:
        title: Its name.
        path: Its address.
        roles: Roles of the services, of which a person needs one to see it. The services hold each call to its role.
    """

    title: str
    path: str
    roles: frozenset[str]

    def is_open_to(self, roles: Set[str]) -> bool:
        """Return whether somebody with these roles sees it."""
        return not self.roles.isdisjoint(roles)


LABEL = Place("Label", f"{PREFIX}/label", frozenset({"label"}))
WATCH = Place("Watch", f"{PREFIX}/watch", frozenset({"view", "admin"}))
COMPARE = Place("Compare", f"{PREFIX}/compare", frozenset({"view", "admin"}))
DECIDE = Place("Decide", f"{PREFIX}/decide", frozenset({"admin"}))
PEOPLE = Place("People", f"{PREFIX}/people", frozenset({"view", "admin"}))

PLACES = (LABEL, WATCH, COMPARE, DECIDE, PEOPLE)
