"""Many large batches that wait for the engine at once, against the memory of the process."""

from __future__ import annotations

import subprocess
import sys

MIB = 2**20

# Lets so many batches wait for an engine that never runs, and prints the bytes that they came in and those of memory.
_WAITING = """
import asyncio, sys
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_server.calls.large_batch import decode_batch
from rewardloop_server.calls.validate import Limits
from rewardloop_server.scoring.servicer import BulkLimits, RewardServicer

class Never:
    async def score(self, *args, **kwargs):
        await asyncio.Event().wait()

batcher = SimpleNamespace(reserved=lambda *args, **kwargs: nullcontext(), has_bulk_room=lambda lane: True)
servicer = RewardServicer(Never(), batcher, Limits(), BulkLimits(1024, 256, 32_768), Mock())
context = SimpleNamespace(time_remaining=lambda: None, invocation_metadata=tuple, peer=lambda: "somebody")
groups, responses, size = map(int, sys.argv[1:])
group = reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="p"), responses=["x" * size] * responses)
message = reward_pb2.ScoreBatchRequest(groups=[group] * groups).SerializeToString()
del group

async def main():
    memory = psutil.Process().memory_info
    before, held = memory().rss, []
    for number in range(24):
        held.append(bytes(bytearray(message)))  # as gRPC holds the bytes of a call until it ends
        held.append(asyncio.create_task(servicer.ScoreBatch(decode_batch(held[-1], 1024), context)))
        await asyncio.sleep(0.01)
    print(24 * len(message), memory().rss - before, flush=True)

asyncio.run(asyncio.wait_for(main(), 200))
"""


def grown(groups: int, responses: int, size: int) -> float:
    """Return by how many times the bytes of the batches the memory grew that they take."""
    argv = [sys.executable, "-c", _WAITING, *map(str, (groups, responses, size))]
    ended = subprocess.run(argv, timeout=240, check=True, capture_output=True, text=True)
    came, grew = map(int, ended.stdout.split())
    assert came > 60 * MIB
    return grew / came


def test_batches_of_long_texts_that_wait_are_held_once() -> None:
    assert grown(31, 1, 131_072) < 1.6


def test_batches_of_many_short_texts_that_wait_are_held_once() -> None:
    assert grown(1024, 256, 20) < 1.6
