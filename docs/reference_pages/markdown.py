"""Markdown for the generated pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def cell(text: str) -> str:
    """Text for a table cell or a paragraph: one line, with what Markdown would read as markup escaped.

    Code spans stay as they are, except that a bar in them is escaped.
    """
    parts = re.split(r"(`+[^`]*`+)", " ".join(text.replace("``", "`").split()))
    escaped = (
        part if part.startswith("`") else part.replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_")
        for part in parts
    )
    return "".join(escaped).replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(text: str) -> str:
    """A code span, or an empty cell for empty text."""
    return f"`{text}`".replace("|", r"\|") if text else ""


def block(text: str) -> str:
    """A fenced block of plain text."""
    return f"```text\n{text.rstrip()}\n```\n"
