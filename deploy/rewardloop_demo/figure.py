"""Draws the demo's figure: the reward model's accuracy, the policy's win rate, and the freshness of live versions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rewardloop.process.plot_style import BLUE, GREEN, ORANGE, PALE_BLUE, QUIET, STYLE
from rewardloop_demo.record import GOAL, DemoRecord, algorithm_name, series


def draw(demo: DemoRecord, path: Path) -> Path:
    """Draw accuracy, win rate and freshness over the number of recorded signals; return ``path``."""
    most = max((r.signals for r in demo.rounds), default=0) or 1
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # keys as plain strings
        figure = Figure(figsize=(13.5, 4.2), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        accuracy, wins, freshness = figure.subplots(1, 3)
        _draw_accuracy(accuracy, demo)
        _draw_wins(wins, demo)
        _draw_freshness(freshness, demo)
        for axes in (accuracy, wins, freshness):
            axes.set_xlabel("signals recorded")
            axes.set_xlim(-0.04 * most, 1.2 * most)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.suptitle(
            f"rewardloop demo, seed {demo.seed}: {sum(demo.signal_kinds.values()):,} signals in "
            f"{demo.seconds / 60:.1f} minutes",
            x=0.01,
            ha="left",
            color=QUIET,
        )
        figure.savefig(path)
    return path


def _draw_accuracy(axes: Axes, demo: DemoRecord) -> None:
    x, y = series(demo.rounds, "reward_accuracy")
    _level(axes, demo.accuracy_ceiling, "ceiling that label noise allows", ORANGE)
    _level(axes, demo.starter_accuracy, "starter", QUIET, below=True)
    _level(axes, demo.bag_of_words_accuracy, "bag of words on the same choices", QUIET)
    _line(axes, x, y, BLUE, "{:.2f}")
    axes.set(title="Reward model", ylabel="accuracy on held-out choices")
    axes.set_ylim(min(0.45, _least([*y, demo.starter_accuracy]) - 0.05), 1.0)


def _draw_wins(axes: Axes, demo: DemoRecord) -> None:
    x, y = series(demo.rounds, "win_rate")
    _, low = series(demo.rounds, "win_low")
    _, high = series(demo.rounds, "win_high")
    _level(axes, 0.5, "as good as the starter", QUIET, below=True)
    _level(axes, GOAL, f"goal: interval wholly above {GOAL:.2f}", ORANGE)
    axes.fill_between(x, low, high, color=GREEN, alpha=0.18, lw=0)
    _line(axes, x, y, GREEN, "{:.2f}")
    axes.set(
        title=f"Policy by {algorithm_name(demo)}, judged by the hidden taste", ylabel="win rate against the starter"
    )
    axes.set_ylim(min(0.4, _least(low) - 0.05), 1.0)


def _draw_freshness(axes: Axes, demo: DemoRecord) -> None:
    x, middle = series(demo.rounds, "freshness_p50_s")
    _, slowest = series(demo.rounds, "freshness_max_s")
    axes.fill_between(x, middle, slowest, color=BLUE, alpha=0.12, lw=0)
    _line(axes, x, slowest, PALE_BLUE, "slowest\n{:.0f} s")
    _line(axes, x, middle, BLUE, "median\n{:.0f} s")
    axes.set(title="Freshness: signal to live model", ylabel="seconds from arrival to use")
    axes.set_ylim(0, 1.15 * max(slowest, default=1.0))


def _line(axes: Axes, x: Sequence[int], y: Sequence[float], colour: str, label: str) -> None:
    """Draw a line with its last value beside it."""
    axes.plot(x, y, color=colour, marker="o", ms=5, lw=2, zorder=3)
    if x:
        axes.annotate(
            label.format(y[-1]),
            (x[-1], y[-1]),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight="bold",
        )


def _level(axes: Axes, value: float, label: str, colour: str, *, below: bool = False) -> None:
    """Draw a dashed level with its name above or below it at the right edge. A level that is NaN is left out."""
    if math.isnan(value):
        return
    axes.axhline(value, color=colour, lw=1.3, ls="--", zorder=1)
    axes.annotate(
        label,
        (1.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -4 if below else 4),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        color=colour,
        size=9,
    )


def _least(values: Sequence[float]) -> float:
    return min((v for v in values if not math.isnan(v)), default=1.0)
