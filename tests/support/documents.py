"""Documents of the repository: their fenced blocks, and product code without its comments and docstrings."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("protos", "client", "server", "trainer", "deploy")

# A fence with what stands right before it, which may be a comment that says why the block does not run.
_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+?) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. ``line``: of its first line of code. ``reason``: why it is not run; empty if it is."""

    page: Path
    line: int
    language: str
    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """The pages whose snippets are kept true: the site's, the README and CONTRIBUTING."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(page, line, found["language"], found["code"], (found["reason"] or "").strip())


@cache
def tracked() -> Sequence[str]:
    """Paths that git tracks, or would with the next commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(path for path in listed.stdout.splitlines() if (ROOT / path).is_file())


def code_of(path: str) -> str:
    """The text of a file; of a Python module without comments and docstrings, which name things but do nothing."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return _without_prose(text) if path.endswith(".py") else text


def _without_prose(source: str) -> str:
    kept: list[str] = []
    begins_statement = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            begins_statement = True
            continue
        if token.type == tokenize.COMMENT:
            continue
        is_docstring = token.type == tokenize.STRING and begins_statement and token.line.strip()[:3] in ('"""', "'''")
        if not is_docstring:
            kept.append(token.string)
        begins_statement = False
    return "\n".join(kept)
