"""Shows what models and people have written. No HTML of theirs is taken, no image is loaded, and a link only leads out.

Three things hold it apart, each by itself: the reader of Markdown escapes HTML, what it makes is cleaned by a list of
tags, and the page's content security policy runs scripts and loads images from the console's own files alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_block import table as table_rule
from markdown_it.token import Token
from markupsafe import Markup, escape

# Above this many characters a text is shown as it is. The reader takes a time that grows with the square of the length
# for some texts, such as one of brackets: about half a second at this length.
MOST_CHARACTERS = 20_000
# The texts of a page that are read as Markdown have so many characters together.
MOST_OF_A_PAGE = 60_000
# A row of a table has as many cells as its head, however short it is, so that a short text may be a huge table. What
# would come after so many cells of a page is shown as it is.
MOST_CELLS = 5_000
_SCHEMES = ("https://", "http://", "mailto:")
_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "span"),
    *("h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
_TOP_HEADING = 4  # the page has the ones above


class Texts:
    """The texts of one page, which share bounds. Beyond them a text is shown as it is."""

    def __init__(self) -> None:
        self._characters_left = MOST_OF_A_PAGE
        self._cells_left = MOST_CELLS

    def rendered(self, text: str) -> Markup:
        """Return a text as HTML: by the rules of Markdown, or as it is if it is very long or the page has too much."""
        if len(text) > MOST_CHARACTERS:
            return _as_it_is(text, f"It has more than {MOST_CHARACTERS:,} characters, so that it is not formatted.")
        if len(text) > self._characters_left:
            return _as_it_is(text, "It is not formatted, because the texts of this page are too long together.")
        self._characters_left -= len(text)
        counted = {"cells_left": self._cells_left}
        html = _MARKDOWN.render(text, counted)
        self._cells_left = counted["cells_left"]
        return Markup(
            nh3.clean(
                html,
                tags=_TAGS,
                attributes={"a": {"href", "title"}, "ol": {"start"}},
                allowed_classes={"span": {"image"}},
                url_schemes={"https", "http", "mailto"},
                link_rel="noopener noreferrer nofollow",
                set_tag_attribute_values={"a": {"target": "_blank"}},
            )
        )


def rendered(text: str) -> Markup:
    """Return the only text of a page as HTML; see `Texts.rendered`."""
    return Texts().rendered(text)


def _as_it_is(text: str, why: str) -> Markup:
    return Markup('<p class="hint">{}</p><pre class="as-it-is">{}</pre>').format(why, text)


def _image(_: RendererHTML, tokens: Sequence[Token], i: int, options: Any, env: Any) -> str:
    """Return an image as words: loading it would tell its server who reads the page."""
    address = str(tokens[i].attrGet("src") or "")
    return f'<span class="image">[image: {escape(tokens[i].content)} {escape(address)}]</span>'


def _heading(_: RendererHTML, tokens: Sequence[Token], i: int, options: Any, env: Any) -> str:
    level = min(6, _TOP_HEADING - 1 + int(tokens[i].tag[1:]))
    return f"<{'/' if tokens[i].nesting < 0 else ''}h{level}>"


def _table(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """Take a table by the rule of Markdown, unless the tables of its page have too many cells together."""
    is_table = table_rule(state, first, end, True)
    if silent or not is_table:
        return is_table
    columns = state.src[state.bMarks[first] : state.eMarks[first]].count("|") + 1
    left = state.env["cells_left"]
    for line in range(first, end):
        if state.isEmpty(line):
            break
        left -= columns
        if left < 0:
            return False
    state.env["cells_left"] = left
    return table_rule(state, first, end, False)


def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    reader.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    reader.validateLink = lambda url: url.lower().startswith(_SCHEMES)  # type: ignore[method-assign]
    for name, rule in (("image", _image), ("heading_open", _heading), ("heading_close", _heading)):
        reader.add_render_rule(name, rule)
    return reader


_MARKDOWN = _reader()
