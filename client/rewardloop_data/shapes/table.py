"""All shapes that are known, in the order in which they are tried."""

from __future__ import annotations

from rewardloop_data.shapes import alone, comparisons, published, scored, unread
from rewardloop_data.shapes.shape import Shape

SHAPES: tuple[Shape, ...] = (
    *comparisons.SHAPES,
    *alone.SHAPES,
    *published.SHAPES,
    *scored.SHAPES,
    *unread.SHAPES,
)


def shape_named(name: str) -> Shape | None:
    """Return the shape of a name, or None."""
    return next((shape for shape in SHAPES if shape.name == name), None)
