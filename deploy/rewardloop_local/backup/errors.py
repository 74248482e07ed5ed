"""The error that ends a backup or a restore."""

from __future__ import annotations


class BackupError(Exception):
    """Raised when a backup cannot be made or put back. The text is one line that says why, and what to do."""
