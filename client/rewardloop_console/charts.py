"""Draws the curves of a round as SVG, with colours of the style sheet and the figures as text for screen readers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from rewardloop.v1 import operations_pb2

_WIDTH, _HEIGHT, _MARGIN = 320, 120, 6


def curve_svg(curve: operations_pb2.Curve) -> Markup:
    """Return the picture of a curve with at least one point; its names and figures are escaped."""
    steps, values = list(curve.steps), list(curve.values)
    text = (
        f"{curve.name}: from {number(values[0])} to {number(values[-1])} "
        f"(least {number(min(values))}, most {number(max(values))}) over step {steps[0]} to {steps[-1]}"
    )
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _places(steps, values))
    x, y = _places(steps, values)[-1]
    return Markup(
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(text)}">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="currentColor"/></svg>'
    )


def number(value: float) -> str:
    """Return a figure as a reader wants it: three digits that count, thousands apart."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3g}"


def _places(steps: Sequence[int], values: Sequence[float]) -> list[tuple[float, float]]:
    """Return where each point is drawn; a single value or step lies in the middle."""
    low, high, first, last = min(values), max(values), steps[0], steps[-1]
    wide, tall = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    return [
        (
            _MARGIN + wide * ((step - first) / (last - first) if last > first else 0.5),
            _MARGIN + tall * ((high - value) / (high - low) if high > low else 0.5),
        )
        for step, value in zip(steps, values, strict=True)
    ]
