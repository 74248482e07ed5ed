"""The error of a base that cannot be used. It is apart from what loads one, so that it is imported quickly."""

from __future__ import annotations


class UnusableBase(ValueError):
    """Raised when a directory or hub id is not a model that can be used."""
