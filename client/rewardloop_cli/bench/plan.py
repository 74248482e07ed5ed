"""How many servers a rate takes, from what one of them can do."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Above it the queue, and with it the tail of the latency, grows quickly.
LOAD = 0.7


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """``servers``: so that each is loaded to ``LOAD`` at most. ``load``: what each then has.

    ``load_without_one``: while one of them is away; infinite when the only one is. ``mean_wait``: of a request in the
    queue, in multiples of its time on the engine.
    """

    servers: int
    load: float
    load_without_one: float
    mean_wait: float


def plan_for(rate: float, saturation: float) -> ServerPlan:
    """``rate`` and ``saturation``, both in requests a second, the latter of one server."""
    servers = max(1, math.ceil(rate / (LOAD * saturation) - 1e-9))
    load = rate / (servers * saturation)
    without_one = rate / ((servers - 1) * saturation) if servers > 1 else math.inf
    return ServerPlan(servers, load, without_one, mean_wait(load))


def mean_wait(load: float, variation: float = 1.0) -> float:
    """Of an M/G/1 queue (Pollaczek and Khinchine), in multiples of the mean service time; infinite from load 1 on.

    ``variation``: standard deviation of the service time over its mean: 1 for lengths that differ as real texts do.
    """
    return load / (1 - load) * (1 + variation**2) / 2 if load < 1 else math.inf
