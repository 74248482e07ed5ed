"""How many servers a rate takes."""

from __future__ import annotations

import math
import random

import pytest

from rewardloop_cli.bench.plan import LOAD, mean_wait, plan_for


@pytest.mark.parametrize(("rate", "servers"), [(0.1, 1), (7.0, 1), (7.01, 2), (70.0, 10), (500.0, 72)])
def test_no_server_is_loaded_beyond_the_bound_and_one_fewer_would_be(rate: float, servers: int) -> None:
    plan = plan_for(rate, saturation=10.0)
    assert plan.servers == servers
    assert plan.load <= LOAD + 1e-9
    assert servers == 1 or plan.load_without_one > LOAD
    assert math.isinf(plan.load_without_one) == (servers == 1)


def test_the_mean_wait_is_that_of_a_simulated_queue() -> None:
    chance = random.Random(0)
    free, now, waited, count = 0.0, 0.0, 0.0, 200_000
    for _ in range(count):
        now += chance.expovariate(0.7)
        waited += max(0.0, free - now)
        free = max(free, now) + chance.expovariate(1.0)  # deviation and mean are alike
    assert waited / count == pytest.approx(mean_wait(0.7), rel=0.1)
    assert math.isinf(mean_wait(1.0))
