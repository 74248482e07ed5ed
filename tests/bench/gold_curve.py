"""What is read off a run's points: when gold turned, how much of its gain was left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

_SMOOTH = 5


def smooth(values: Sequence[float]) -> list[float]:
    """Mean of each value and those before it, at most `_SMOOTH` in all."""
    return [statistics.mean(values[max(0, i + 1 - _SMOOTH) : i + 1]) for i in range(len(values))]


def turning_point(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Where gold, smoothed, was best ("step", "best"), how it ended ("last"), the proxy then and at the end.

    ``lost_third``: the first step at which a third of the best gain is gone, 0 where it never is.
    """
    gold, proxy = smooth([p["gold"] for p in points]), smooth([p["proxy"] for p in points])
    place = max(range(len(gold)), key=lambda i: gold[i])
    lost = [p["step"] for p, value in zip(points[place:], gold[place:], strict=True) if value < 2 / 3 * gold[place]]
    return {
        "step": points[place]["step"],
        "best": gold[place],
        "last": gold[-1],
        "proxy_then": proxy[place],
        "proxy_last": proxy[-1],
        "lost_third": lost[0] if lost else 0,
    }
