"""A little of what `python tests/fuzz/rpc.py --messages 100000` does, so that it does not rot."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz import rpc
from fuzz.messages import damaged, random_message
from support.doors import METHODS as PATHS

from rewardloop.v1 import reward_pb2

pytestmark = pytest.mark.long


def test_every_method_is_fuzzed() -> None:
    assert {f"/rewardloop.v1.{method}" for method in rpc.METHODS} == set(PATHS)


def test_requests_are_those_of_the_seed() -> None:
    def made(seed: int) -> list[bytes]:
        chance = random.Random(seed)
        texts = [random_message(reward_pb2.ScoreRequest, chance).SerializeToString() for _ in range(20)]
        return [damaged(text, texts, chance) for text in texts]

    assert made(1) == made(1) != made(2)


@pytest.mark.parametrize("seed", [1])
async def test_nothing_crashes_hangs_or_is_internal(seed: int, tmp_path: Path) -> None:
    found = await rpc.run(tmp_path, messages=600, seed=seed)
    assert found.bad == []
    assert {method for method, _ in found.codes} == set(rpc.METHODS)
    assert {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED"} <= {code for _, code in found.codes}
