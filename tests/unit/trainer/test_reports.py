"""The page of a report and its JSON file: the same figures in both, and nothing in a text that runs or loads."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rewardloop_trainer.reports.page import render, write_report
from rewardloop_trainer.reports.parts import (
    Curve,
    Curves,
    Heading,
    Intervals,
    Measured,
    Paragraph,
    Report,
    Sample,
    Samples,
    Section,
    Side,
    Table,
)
from rewardloop_trainer.reports.values import shown

HOSTILE = "</script><script>alert('&$x')</script><img src=http://x.example/a.png onerror=alert(1)> \"' \udc80"


class Page(HTMLParser):
    """The elements of a page with their attributes, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.elements[-1:] and self.elements[-1][0] == "script" and data.strip():
            self.scripts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def full_report(text: str = "plain") -> Report:
    sample = Sample(text, [Side(text, text, {text: 1.5}), Side("b", "")], {text: 0.25, "gap": math.nan}, [text])
    return Report(
        text,
        text,
        {text: text, "signals": 12_345, "at": Measured(0.5, 0.25, 0.75)},
        {"accuracy": 0.61234567, "missing": math.nan},
        [
            Section(
                "first",
                text,
                [
                    Heading(text),
                    Paragraph(text, "bad"),
                    Table("all", (text, "n"), [(text, Measured(0.6, 0.5, math.inf)), (None, 3)], text, text),
                ],
            ),
            Section(
                "second",
                "Plots",
                [
                    Curves(
                        "loss", text, text, text, [Curve(text, (0, 1), (0.5, math.inf), (0, 0), (1, 1))], True, text
                    ),
                    Curves("loss2", "again", "x", "y", [Curve("a", (0, 1), (0, 1)), Curve("b", (0, 1), (1, 0))]),
                    Intervals(
                        "wins", text, text, [(text, Measured(0.5, 0.4, 0.6)), ("none", Measured(math.nan, 0, 0))]
                    ),
                    Samples("said", [sample], text, text),
                ],
            ),
        ],
    )


@cache
def page_of(text: str = "plain") -> str:
    return render(full_report(text))


def test_a_hostile_text_adds_no_element_and_loads_nothing() -> None:
    usual, hostile = Page(page_of()), Page(page_of(HOSTILE))
    assert {tag for tag, _ in hostile.elements} == {tag for tag, _ in usual.elements}  # no img
    assert [len(page.named("text")) > 0 for page in (usual, hostile)] == [True, True]
    assert len(hostile.named("script")) == 1
    assert not any(name.startswith("on") for _, attributes in hostile.elements for name in attributes)
    sources = [a[name] for _, a in hostile.elements for name in ("src", "href", "xlink:href") if a.get(name)]
    assert all(source is not None and source.startswith("#") for source in sources)


def test_the_policy_of_the_page_allows_its_own_script_alone() -> None:
    page = Page(page_of(HOSTILE))
    (policy,) = [a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


def test_both_files_have_the_same_figures(tmp_path: Path) -> None:
    write_report(full_report(), tmp_path / "deep" / "out")
    page = Page((tmp_path / "deep/out/report.html").read_text())
    found = json.loads((tmp_path / "deep/out/report.json").read_text())
    assert found["figures"] == {"accuracy": 0.61234567, "missing": None}
    assert found["facts"]["signals"] == 12_345
    assert found["facts"]["at"] == {"value": 0.5, "lower": 0.25, "upper": 0.75}
    table = found["sections"][0]["parts"][2]
    assert table["rows"] == [["plain", {"value": 0.6, "lower": 0.5, "upper": None}], [None, 3]]
    curve = found["sections"][1]["parts"][0]["curves"][0]
    assert curve["y"] == [0.5, None]
    assert found["sections"][1]["parts"][3]["samples"][0]["sides"][0]["figures"] == {"plain": 1.5}
    assert "0.500 (0.250 to 0.750)" in page.text
    assert "12,345" in page.text


def test_a_report_of_any_text_is_written(tmp_path: Path) -> None:
    report = full_report(HOSTILE)
    write_report(Report(report.title, report.lead, report.facts, {}, report.sections[:1]), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["sections"]
    assert "alert" in Page((tmp_path / "report.html").read_text()).text


def test_ids_of_plots_are_unique_and_their_references_resolve() -> None:
    page = Page(page_of())
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]*)\)", page_of())
    used += [(a.get("xlink:href") or "#")[1:] for a in page.named("use")]
    assert used
    assert set(used) <= set(ids)


def test_the_contents_lead_to_every_section_and_heading() -> None:
    page = Page(page_of())
    ids = {a["id"] for _, a in page.elements if a.get("id")}
    links = [a["href"] for a in page.named("a") if a.get("href")]
    assert len(links) == 3
    assert all(link is not None and link[1:] in ids for link in links)


def test_samples_carry_their_finite_figures_for_sorting() -> None:
    (article,) = Page(page_of()).named("article")
    assert json.loads(article["data-figures"] or "") == {"plain": 0.25}
    assert full_report().sections[1].parts[3].sorted_by == ("plain", "gap")  # type: ignore[union-attr]


def test_values_are_shown_with_their_intervals() -> None:
    cells = [None, True, "a", 1234567, 0.12345, math.nan, 123456.7, Measured(1, 0.5, 2), Measured(1.0, -math.inf, 2)]
    assert [shown(cell) for cell in cells] == [
        *("–", "yes", "a", "1,234,567", "0.123", "–", "123,457", "1 (0.500 to 2)", "1.000")
    ]


def test_mistakes_of_a_caller_are_refused() -> None:
    with pytest.raises(ValueError, match="another number of cells"):
        Table("t", ("a", "b"), [(1,)])
    with pytest.raises(ValueError, match="no name"):
        Section("Two words", "", [])
    with pytest.raises(ValueError, match="same name"):
        Report("r", sections=[Section("a", "", []), Section("a", "", [])])
    with pytest.raises(ValueError, match="more than 4"):
        render(Report("r", sections=[Section("a", "", [Curves("c", "", "", "", [Curve("", (), ())] * 5)])]))
