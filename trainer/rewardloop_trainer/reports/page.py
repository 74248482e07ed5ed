"""Writes a report as one HTML page that loads nothing, with the same figures as JSON beside it.

Prompts and answers are other people's texts and must never run. Every text is escaped, and the page's content security
policy allows the one script whose hash it names, and no other source of anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rewardloop.formats.storing.report_shelf import ReportError, ReportKind, ReportShelf
from rewardloop_trainer.reports.parts import Curves, Heading, Intervals, Part, Report, Sample
from rewardloop_trainer.reports.plots import curves_svg, intervals_svg
from rewardloop_trainer.reports.values import as_json, is_number, shown

log = structlog.get_logger()

PAGE, JSON = "report.html", "report.json"
_SCRIPT = "samples.js"
_STYLE = "page.css"


def write_report(report: Report, directory: Path) -> None:
    """Write ``report.html`` and ``report.json`` into a directory, which is made if it is not there.

    A reader sees each file as it was or whole.

    Raises:
        OSError: If the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = {PAGE: render(report), JSON: json.dumps(as_json(report), indent=2, allow_nan=False, ensure_ascii=False)}
    for name, text in texts.items():
        partial = directory / f".{name}"
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        partial.replace(directory / name)


def publish_report(shelf: ReportShelf, kind: ReportKind, report: Report) -> str:
    """Put the report into a model store, where operators see it. Returns its id, or "" if the store refuses it.

    The refusal is logged: a report that nobody sees does not undo what it reports.
    """
    figures = {name: float(value) for name, value in report.figures.items() if math.isfinite(value)}
    try:
        return shelf.publish(kind, report.title, report.lead, figures, render(report))
    except ReportError as error:
        log.warning("the report is not published", title=report.title, reason=str(error))
        return ""


def render(report: Report) -> str:
    """Return the report as an HTML page."""
    environment = _environment()
    script = _source(environment, _SCRIPT)
    return environment.get_template("page.html.jinja").render(
        report=report,
        style=Markup(_source(environment, _STYLE)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rewardloop_trainer.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "shown": shown,
        "kind": _kind,
        "plot": _plot,
        "sort_figures": _sort_figures,
        "anchor": _anchor,
    }
    environment.tests["numeric"] = is_number
    return environment


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _kind(part: Part) -> str:
    return type(part).__name__


def _plot(part: Part) -> Markup:
    """Draw a plot. matplotlib escapes the texts in it."""
    if isinstance(part, Curves):
        return Markup(curves_svg(part))
    assert isinstance(part, Intervals)
    return Markup(intervals_svg(part))


def _sort_figures(sample: Sample) -> dict[str, float]:
    return {name: float(value) for name, value in sample.figures.items() if math.isfinite(value)}


def _anchor(heading: Heading, section: str) -> str:
    return f"{section}-{hashlib.sha256(heading.text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
