"""Writes the pages of the site into build/docs, from which ``zensical build`` makes build/site.

There are three kinds of pages: those of this folder, files of the repository that are shown as they are, and pages
made from code. A link to a file of the repository that is no page works where the page is read in the repository; the
site shows it as the file's path. Pictures are copied.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from reference_pages import GENERATED, INCLUDED

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "docs"
STAGED = ROOT / "build" / "docs"
# Where the site has the repository's pictures.
PICTURES = "pictures"

_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
# [text](target#anchor) or ![text](target), without a scheme.
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]\n]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


class BrokenLink(Exception):
    """A page links to a file that is not there."""


def main() -> int:
    """Write every page anew. Returns the exit status."""
    shutil.rmtree(STAGED, ignore_errors=True)
    for page, source in sources().items():
        text = (ROOT / source).read_text(encoding="utf-8")
        _write(page, with_site_links(text, source, page))
        for picture in pictures_of(text, source):
            target = STAGED / PICTURES / picture
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / picture, target)
    for page, make in GENERATED.items():
        _write(page, make())
    return 0


def sources() -> Mapping[str, str]:
    """The files that are pages as they are written: path in the site to path in the repository."""
    own = (path.relative_to(SOURCES).as_posix() for path in sorted(SOURCES.rglob("*.md")))
    return {**{page: f"docs/{page}" for page in own}, **INCLUDED}


def with_site_links(text: str, source: str, page: str) -> str:
    """The page's text with its links as the site has them; fenced blocks stay as they are. Raises BrokenLink.

    Args:
        text: Markdown.
        source: the file in the repository, from which its links count.
        page: where it is in the site.
    """
    parts = _FENCE.split(text)
    parts[::2] = [_LINK.sub(lambda link: _site_link(link, source, page), part) for part in parts[::2]]
    return "".join(parts)


def pictures_of(text: str, source: str) -> Iterator[str]:
    """The pictures that a page shows, by their path in the repository."""
    for part in _FENCE.split(text)[::2]:
        yield from (_path(link, source) for link in _LINK.finditer(part) if link["picture"])


def _site_link(link: re.Match[str], source: str, page: str) -> str:
    text, path = link["text"], _path(link, source)
    here = posixpath.dirname(page) or "."
    if link["picture"]:
        return f"![{text}]({posixpath.relpath(f'{PICTURES}/{path}', here)})"
    linked = next((uri for uri, shown in sources().items() if shown == path), None)
    if linked is None and path.removeprefix("docs/") in GENERATED:
        linked = path.removeprefix("docs/")
    if linked is not None:
        return f"[{text}]({posixpath.relpath(linked, here)}{link['anchor'] or ''})"
    is_its_name = text.strip("`") in (path, posixpath.basename(path))
    return f"`{path}`" if is_its_name else f"{text} (`{path}`)"


def _path(link: re.Match[str], source: str) -> str:
    """Where a link leads in the repository. Raises BrokenLink."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
    if not (ROOT / path).exists() and path.removeprefix("docs/") not in GENERATED:
        raise BrokenLink(f"{source}: {link['target']}")
    return path


def _write(page: str, text: str) -> None:
    target = STAGED / page
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
