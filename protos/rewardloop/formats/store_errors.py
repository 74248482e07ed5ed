"""What can be wrong with a stored version."""

from __future__ import annotations


class StoreError(Exception):
    """Base of the store's errors."""


class VersionNotFound(StoreError):
    """The store has no such version."""


class CorruptVersion(StoreError):
    """A file of the version is missing, added or altered, or its manifest cannot be read."""


class UnsafeVersion(CorruptVersion):
    """The version holds what none may hold: links, pickles, code."""


class UntrustedVersion(CorruptVersion):
    """The manifest is not signed with a trusted key."""
