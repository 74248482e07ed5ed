"""Keeps spreadsheets from running a cell of a table as a formula: such a cell begins with an apostrophe instead.

A spreadsheet shows the apostrophe as part of an imported text, or hides it; other programs see it. Cells that begin
with an apostrophe of their own get another one, so that taking one away gives every cell back.
"""

from __future__ import annotations

GUARD = "'"
# A spreadsheet takes each of these for the beginning of a formula, also in full width and after the end of a line.
_BEGINNINGS = (*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20", GUARD)


def guarded(cell: str) -> str:
    """Return a cell that no spreadsheet runs."""
    return GUARD + cell if cell.startswith(_BEGINNINGS) else cell


def unguarded(cell: str) -> str:
    """Return the cell that `guarded` was given."""
    return cell.removeprefix(GUARD)
