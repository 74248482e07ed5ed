"""Prints what an export chose."""

from __future__ import annotations

import sys


def said(notes: dict[str, str]) -> dict[str, str]:
    """Print the manifest's notes, and return them."""
    for name, note in notes.items():
        print(f"rewardloop export: {name}: {note}", file=sys.stderr)
    return notes
