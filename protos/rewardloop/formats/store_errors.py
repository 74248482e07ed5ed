"""The exceptions of the model store."""

from __future__ import annotations


class StoreError(Exception):
    """Base of the store's errors."""


class VersionNotFound(StoreError):
    """Raised if the store does not have the version."""


class CorruptVersion(StoreError):
    """Raised if a file of the version is missing, added or altered, or its manifest cannot be read."""


class UnsafeVersion(CorruptVersion):
    """Raised if the version holds links, pickles or code."""


class UntrustedVersion(CorruptVersion):
    """Raised if no trusted key has signed the manifest."""
