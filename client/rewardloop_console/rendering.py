"""Fills the templates. Every value is escaped, and a name that a template uses and nobody gave is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rewardloop.formats.erasing.words import erased_in_words
from rewardloop_console import words
from rewardloop_console.charts import curve_svg, number

_TEMPLATES = Path(__file__).parent / "templates"

TEMPLATES = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "ago": words.ago,
    "curve_svg": curve_svg,
    "duration": words.duration,
    "erased": erased_in_words,
    "headline": words.headline,
    "number": number,
    "outcome": words.outcome,
    "percent": words.percent,
    "when": words.when,
}


def render(template: str, **values: Any) -> str:
    """Return a filled template."""
    return TEMPLATES.get_template(template).render(values)
