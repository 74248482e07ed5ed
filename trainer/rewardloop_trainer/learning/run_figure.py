"""Draws a run: reward, KL, length, loss, clipped tokens and win rate over its steps, as far as it has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rewardloop.process.plot_style import BLUE, ORANGE, QUIET, STYLE
from rewardloop_trainer.learning.run_rows import StepRow

_COLOURS = (BLUE, ORANGE)
_COLUMNS = 3
# A long curve is drawn faintly, with its mean over about this many steps on top.
_SMOOTHED = 10


@dataclass(frozen=True, slots=True)
class _Panel:
    """One diagram. ``names`` maps the figures that it shows to their legends."""

    title: str
    unit: str
    names: dict[str, str]
    is_share: bool = False


_PANELS = (
    _Panel("Reward", "calibrated score", {"score": "score", "reward": "reward"}),
    _Panel("KL to the reference", "nats an answer", {"kl": "KL", "max_kl": "bound"}),
    _Panel("Length", "tokens an answer", {"tokens": "tokens"}),
    _Panel("Entropy", "nats a token", {"entropy": "entropy"}),
    _Panel("Loss", "", {"loss": "loss"}),
    _Panel("Preference", "implicit reward", {"margin": "margin"}),
    _Panel("Clipped", "share of tokens", {"clipped": "clipped"}, is_share=True),
    _Panel("Sampler and learner", "nats a token", {"sampler_gap": "gap", "sampler_kl": "KL"}),
    _Panel("Answers without an end", "share", {"no_end": "no end"}, is_share=True),
)
_WIN_RATE = "gate_win_rate"


def draw(rows: Sequence[StepRow], path: Path) -> None:
    """Write a PNG of the run so far, which has at least one step."""
    panels = [p for p in _PANELS if any(name in row.figures for row in rows for name in p.names)]
    has_wins = any(_WIN_RATE in row.figures for row in rows)
    count = len(panels) + has_wins
    columns = min(_COLUMNS, max(1, count))
    lines = -(-max(1, count) // columns)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # keys as plain strings
        figure = Figure(figsize=(4.5 * columns, 3.2 * lines), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel, rows)
        if has_wins:
            _draw_wins(grid[len(panels)], rows)
        for axes in grid[:count]:
            axes.set_xlabel("step")
            axes.set_xlim(0, rows[-1].steps + 1)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for axes in grid[count:]:
            axes.set_visible(False)
        figure.savefig(path, format="png")


def _draw_panel(axes: Axes, panel: _Panel, rows: Sequence[StepRow]) -> None:
    drawn = 0
    for (name, legend), colour in zip(panel.names.items(), _COLOURS, strict=False):
        steps = [row.step for row in rows if name in row.figures]
        values = [row.figures[name] for row in rows if name in row.figures]
        if not steps:
            continue
        drawn += 1
        is_long = len(values) > 2 * _SMOOTHED
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, values, color=colour, lw=1.4, alpha=0.3 if is_long else 1, marker=marker)
        if is_long:
            axes.plot(steps, _smoothed(values), color=colour, lw=1.8)
        axes.annotate(
            f"{legend} {values[-1]:.1%}" if panel.is_share else f"{legend} {values[-1]:.3g}",
            (1, 1.02 + 0.08 * (drawn - 1)),
            xycoords="axes fraction",
            ha="right",
            color=colour,
            fontsize=9,
        )
    axes.set(title=panel.title, ylabel=panel.unit)
    if panel.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0)


def _draw_wins(axes: Axes, rows: Sequence[StepRow]) -> None:
    measured = [row for row in rows if _WIN_RATE in row.figures]
    steps, rates = [row.step for row in measured], [row.figures[_WIN_RATE] for row in measured]
    low = [r - row.figures.get(f"{_WIN_RATE}_lower", r) for r, row in zip(rates, measured, strict=True)]
    high = [row.figures.get(f"{_WIN_RATE}_upper", r) - r for r, row in zip(rates, measured, strict=True)]
    axes.axhline(0.5, color=QUIET, lw=1, ls="--")
    axes.errorbar(steps, rates, yerr=(low, high), color=_COLOURS[0], marker="o", capsize=3)
    axes.annotate(f"{rates[-1]:.1%}", (1, 1.02), xycoords="axes fraction", ha="right", color=_COLOURS[0], fontsize=9)
    axes.set(title="Win rate", ylabel="against where it started", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean over the steps around each step."""
    half = _SMOOTHED // 2
    spans = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(span) / len(span) for span in spans]
