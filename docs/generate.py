"""Writes the pages of the site into build/docs, from which ``zensical build`` makes build/site.

There are three kinds of pages: those of this folder, files of the repository that are shown as they are, and pages
made from code. A link to a file of the repository that is no page works where the page is read in the repository; the
site shows it as the file's path.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from reference_pages import GENERATED, INCLUDED

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "docs"
STAGED = ROOT / "build" / "docs"

# [text](target#anchor), neither an image nor a link with a scheme, outside of code.
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


class BrokenLink(Exception):
    """A page links to a file that is not there."""


def main() -> int:
    """Write every page anew. Returns the exit status."""
    made = {path: make() for path, make in GENERATED.items()}
    pages = {**written_pages(), **included_pages(), **made}
    shutil.rmtree(STAGED, ignore_errors=True)
    for path, text in pages.items():
        target = STAGED / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return 0


def written_pages() -> Mapping[str, str]:
    """The pages of this folder, by their path in the site."""
    found = {}
    for source in sorted(SOURCES.rglob("*.md")):
        path = source.relative_to(SOURCES).as_posix()
        found[path] = with_site_links(source.read_text(encoding="utf-8"), f"docs/{path}", path)
    return found


def included_pages() -> Mapping[str, str]:
    """The files of the repository that are pages, by their path in the site."""
    return {
        path: with_site_links((ROOT / source).read_text(encoding="utf-8"), source, path)
        for path, source in INCLUDED.items()
    }


def with_site_links(text: str, source: str, page: str) -> str:
    """The page's text with its links as the site has them. Raises BrokenLink.

    Args:
        text: Markdown.
        source: the file in the repository, from which its links count.
        page: where it is in the site.
    """
    parts = _CODE.split(text)
    # Every second part is code, which stays as it is. A link whose text is code is split by it, so it is joined first.
    joined = "".join(part if i % 2 == 0 or not part.startswith("```") else f"\0{i}\0" for i, part in enumerate(parts))
    linked = _LINK.sub(lambda link: _site_link(link, source, page), joined)
    return re.sub(r"\0(\d+)\0", lambda place: parts[int(place[1])], linked)


def _site_link(link: re.Match[str], source: str, page: str) -> str:
    text, anchor = link["text"], link["anchor"] or ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
    uri = _page_of(path)
    if uri is not None:
        return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(page) or '.')}{anchor})"
    if not (ROOT / path).exists():
        raise BrokenLink(f"{source}: {link['target']}")
    is_its_name = text.strip("`") in (path, posixpath.basename(path))
    return f"`{path}`" if is_its_name else f"{text} (`{path}`)"


def _page_of(path: str) -> str | None:
    """The page that shows a path of the repository; None: it is no page."""
    for uri, source in INCLUDED.items():
        if source == path:
            return uri
    uri = path.removeprefix("docs/")
    is_page = path.startswith("docs/") and (uri in GENERATED or (SOURCES / uri).is_file()) and uri.endswith(".md")
    return uri if is_page else None


if __name__ == "__main__":
    raise SystemExit(main())
