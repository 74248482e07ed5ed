"""The matplotlib settings and the colours of every plot. This module imports nothing."""

from __future__ import annotations

INK, QUIET, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, PALE_BLUE, GREEN, ORANGE = "#2563eb", "#93b4f5", "#059669", "#d97706"

STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}
