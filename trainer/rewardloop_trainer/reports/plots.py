"""Draws the plots of a report as SVG that stands within an HTML page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from rewardloop.process.plot_style import BLUE, GREEN, ORANGE, QUIET, STYLE
from rewardloop_trainer.reports.parts import Curve, Curves, Intervals

_COLOURS = (BLUE, ORANGE, GREEN, QUIET)
_WIDTH = 6.4
_ROW, _LEAST_HEIGHT = 0.32, 1.4
_LONGEST_LABEL = 60
# Texts stay texts, so that the browser finds a font for any script; "$" in one starts no formula.
_RULES = {**STYLE, "svg.fonttype": "none", "svg.hashsalt": "rewardloop", "text.parse_math": False}
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')


def curves_svg(plot: Curves) -> str:
    """Draw curves. Returns an ``<svg>`` element. Raises ValueError for more than four curves."""
    if len(plot.curves) > len(_COLOURS):
        raise ValueError(f"plot {plot.name}: has more than {len(_COLOURS)} curves")
    with mpl.rc_context(_RULES):  # type: ignore[arg-type]  # keys as plain strings
        figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        if plot.diagonal:
            axes.plot((0, 1), (0, 1), color=QUIET, lw=1, ls="--")
        for curve, colour in zip(plot.curves, _COLOURS, strict=False):
            _draw_curve(axes, curve, colour)
        axes.set(xlabel=_short(plot.x_label), ylabel=_short(plot.y_label))
        if len(plot.curves) > 1:
            axes.legend(frameon=False)
        return _svg(figure, plot.name, plot.title)


def intervals_svg(plot: Intervals) -> str:
    """Draw a point with its interval for each row. Returns an ``<svg>`` element."""
    with mpl.rc_context(_RULES):  # type: ignore[arg-type]  # keys as plain strings
        figure = Figure(figsize=(_WIDTH, _LEAST_HEIGHT + _ROW * len(plot.rows)), layout="constrained")
        axes = figure.subplots()
        if plot.reference is not None:
            axes.axvline(plot.reference, color=QUIET, lw=1, ls="--")
        for place, (_, found) in enumerate(plot.rows):
            if not math.isfinite(found.value):
                continue
            axes.plot([found.value], [place], marker="o", color=BLUE, ls="")
            if math.isfinite(found.lower) and math.isfinite(found.upper):
                axes.plot([found.lower, found.upper], [place, place], color=BLUE, lw=1.6)
        axes.set(xlabel=_short(plot.x_label), ylim=(len(plot.rows) - 0.4, -0.6))
        axes.set_yticks(range(len(plot.rows)), [_short(label) for label, _ in plot.rows])
        axes.grid(visible=False, axis="y")
        return _svg(figure, plot.name, plot.title)


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    axes.plot(_finite(curve.x), _finite(curve.y), color=colour, lw=1.6, marker="o", ms=3.5, label=_short(curve.title))
    if len(curve.lower) and len(curve.upper):
        axes.fill_between(_finite(curve.x), _finite(curve.lower), _finite(curve.upper), color=colour, alpha=0.15, lw=0)


def _finite(values: Sequence[float]) -> list[float]:
    """Infinite values are left out of a plot, as NaN are."""
    return [value if math.isfinite(value) else math.nan for value in values]


def _short(label: str) -> str:
    """The label as one short line that is valid Unicode."""
    line = " ".join(label.encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= _LONGEST_LABEL else line[: _LONGEST_LABEL - 1] + "…"


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an ``<svg>`` element whose ids are unique in a page, because they begin with the plot's name."""
    FigureCanvasSVG(figure)
    written = io.StringIO()
    with warnings.catch_warnings():
        # matplotlib measures labels with a font that lacks most scripts; the browser draws them with another one.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Title": _short(title)})
    text = written.getvalue()
    return _REFERENCE.sub(rf"\g<1>{name}-", text[text.index("<svg") :])
