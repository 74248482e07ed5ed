"""Texts of models as HTML: nothing of theirs runs, loads or leads into the console."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardloop_console.markdown import MOST_CELLS, MOST_CHARACTERS, MOST_OF_A_PAGE, Texts, rendered


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<svg/onload=alert(1)>",
        "<iframe src=//evil.example></iframe>",
        "<style>*{display:none}</style>",
        "```<script>\nalert(1)\n```",
        "<!-- --><math><mi xlink:href=javascript:alert(1)>",
        "[a]: x '\"><script>alert(1)</script>'\n[a]",
    ],
)
def test_html_of_a_text_is_shown_as_text(text: str) -> None:
    html = str(rendered(text)).lower()
    for opened in ("<script", "<img", "<svg", "<iframe", "<style", "<math", "<!--"):
        assert opened not in html


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "/console/sign-out",
        "//evil.example",
        "x",
    ],
)
def test_a_link_that_is_not_to_the_web_is_text(address: str) -> None:
    assert "href" not in rendered(f"[press]({address})")


def test_a_link_to_the_web_tells_nobody_where_it_was() -> None:
    html = rendered("[press](https://a.example/ 'title') <https://b.example>")
    assert html.count('rel="noopener noreferrer nofollow"') == 2
    assert html.count('target="_blank"') == 2


def test_an_image_is_named_and_not_loaded() -> None:
    html = rendered("![a beacon](https://evil.example/pixel.png)")
    assert "<img" not in html
    assert "a beacon https://evil.example/pixel.png" in html


def test_code_tables_and_headings_are_formatted() -> None:
    html = rendered("# Top\n\n```python\nif a < b: pass\n```\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n- one")
    for part in ("<h4>Top</h4>", "<pre><code>if a &lt; b: pass\n</code></pre>", "<td>2</td>", "<li>one</li>"):
        assert part in html


@pytest.mark.parametrize("piece", ["x", "[", "<", "*a", "`", "![a](", "a_"])
def test_a_long_text_is_shown_in_time(piece: str) -> None:
    started = time.process_time()
    html = rendered(piece * (100_000 // len(piece)))
    rendered(piece * (MOST_CHARACTERS // len(piece)))
    assert time.process_time() - started < 10
    assert html.startswith('<p class="hint">It has more than 20,000 characters')
    assert '<pre class="as-it-is">' in html


def test_the_texts_of_a_page_have_bounds_together_and_say_so() -> None:
    texts = Texts()
    page = [str(texts.rendered("<https://a.example>\n\n" * 500)) for _ in range(100)]
    formatted = [each for each in page if "<a href" in each]
    assert len(formatted) == MOST_OF_A_PAGE // (21 * 500)
    assert sum(map(len, formatted)) < 15 * MOST_OF_A_PAGE
    for each in page[len(formatted) :]:
        assert "It is not formatted, because the texts of this page are too long together." in each
        assert "&lt;https://a.example&gt;" in each
    assert "<em>short</em>" in texts.rendered("*short*")


def test_the_tables_of_a_page_share_their_cells() -> None:
    texts = Texts()
    table = "|" + "a|" * 40 + "\n|" + "-|" * 40 + "\n" + "b\n" * 60
    page = [texts.rendered(table).count("<td") for _ in range(10)]
    assert page[0] > 0
    assert sum(page) <= MOST_CELLS
    assert page[-1] == 0


@pytest.mark.parametrize("tables", [1, 10])
def test_a_short_text_is_no_huge_table(tables: int) -> None:
    text = "\n\n".join("|" + "a|" * 400 + "\n|" + "-|" * 400 + "\n" + "b\n" * 160 for _ in range(tables))
    html = rendered(text)
    assert html.count("<td") == 0
    assert len(html) < 2 * len(text)
    small = "| a | b |\n| - | - |\n| 1 | 2 |\n"
    assert rendered(f"{small}\n{text}\n\n{small}").count("<td>") == 4


@given(st.text(alphabet=st.sampled_from("<>\"'&[]()!`*_#-:/=\n aijsvo"), max_size=200))
def test_only_listed_tags_and_attributes_come_out(text: str) -> None:
    html = str(rendered(text)).lower()
    for opened in ("<script", "<img", "<iframe", "<svg", "<style", "<form", "<input", "javascript:"):
        assert opened not in html.replace("&", "")
