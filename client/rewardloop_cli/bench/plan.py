"""Computes how many servers a rate needs, from the throughput of one."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Above this load the queue, and with it the tail of the latency, grows quickly.
LOAD = 0.7


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The servers that a rate needs.

    Attributes:
        servers: Number of servers with which each has at most ``LOAD``.
        load: Share of its throughput that each then uses.
        load_without_one: The same while one server is away; infinite if the only one is.
        mean_wait: Mean wait of a request in the queue, in multiples of its time on the engine.
    """

    servers: int
    load: float
    load_without_one: float
    mean_wait: float


def plan_for(rate: float, saturation: float) -> ServerPlan:
    """Plan servers for ``rate``; ``saturation`` is the throughput of one. Both are requests a second."""
    servers = max(1, math.ceil(rate / (LOAD * saturation) - 1e-9))
    load = rate / (servers * saturation)
    without_one = rate / ((servers - 1) * saturation) if servers > 1 else math.inf
    return ServerPlan(servers, load, without_one, mean_wait(load))


def mean_wait(load: float, variation: float = 1.0) -> float:
    """Return the mean wait in an M/G/1 queue (Pollaczek and Khinchine), in multiples of the mean service time.

    Args:
        load: Share of the throughput that is used. From 1 on the wait is infinite.
        variation: Standard deviation of the service time over its mean. It is about 1 for real texts' lengths.
    """
    return load / (1 - load) * (1 + variation**2) / 2 if load < 1 else math.inf
