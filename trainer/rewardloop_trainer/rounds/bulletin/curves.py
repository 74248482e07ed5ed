"""The figures of a round's steps, thinned out so that a round of any length has a bounded number of points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rewardloop.v1 import operations_pb2

MOST_POINTS = 200
_MOST_CURVES = 12


class Curves:
    """Collects points. Once a curve is full, every other point is dropped, and from then on every other step kept."""

    def __init__(self, known: Iterable[operations_pb2.Curve] = ()) -> None:
        self._points: dict[str, list[tuple[int, float]]] = {
            curve.name: list(zip(curve.steps, curve.values, strict=False)) for curve in known
        }
        self._stride = 1

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step. Points of this and later steps, which a killed process left, are dropped."""
        for name, points in self._points.items():
            self._points[name] = [point for point in points if point[0] < step]
        if step % self._stride:
            return
        for name, value in figures.items():
            if not math.isfinite(value) or (name not in self._points and len(self._points) == _MOST_CURVES):
                continue
            self._points.setdefault(name, []).append((step, value))
        if any(len(points) >= MOST_POINTS for points in self._points.values()):
            self._stride *= 2
            for name, points in self._points.items():
                self._points[name] = [point for point in points if point[0] % self._stride == 0]

    def messages(self) -> list[operations_pb2.Curve]:
        """Return the curves by name, without those that have no point."""
        return [
            operations_pb2.Curve(name=name, steps=[step for step, _ in points], values=[value for _, value in points])
            for name, points in sorted(self._points.items())
            if points
        ]
