"""What it brings that requests join the policy worker's running batch, against batches that nobody joins.

    python tests/bench/policy_batches.py --rounds 5

A tiny random Llama answers the same requests in both ways: as there is room for them, or 64 at a time, where the next
64 come when all are answered. CPU time of the process, the least of the rounds, which take turns, and forward passes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from support.policy_versions import byte_encoder, small_llama

from rewardloop.formats.store import Manifest
from rewardloop_policy.policy_model import PolicyModel
from rewardloop_policy.sample_batcher import SampleBatcher
from rewardloop_policy.sample_thread import Room
from rewardloop_sampling.generation_rules import GenerationRules
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.observe.metrics import ServerMetrics

_ROWS = 64
_REQUESTS = 256


def workloads() -> dict[str, list[SampleRequest]]:
    chance = Random(1)

    def request(i: int, new_tokens: int) -> SampleRequest:
        prompt = [chance.randrange(2, 258) for _ in range(chance.randint(4, 40))]
        return SampleRequest(prompt, seed=i, max_new_tokens=new_tokens)

    return {
        "equal, 48 tokens": [request(i, 48) for i in range(_REQUESTS)],
        "mixed, 2 to 88 tokens": [request(i, 88 if i % 8 == 0 else chance.randint(2, 24)) for i in range(_REQUESTS)],
    }


async def answer(policy: PolicyModel, requests: Sequence[SampleRequest], at_once: int) -> None:
    batcher = SampleBatcher(room=Room(_ROWS, 10**9), max_queue_rows=_REQUESTS, metrics=ServerMetrics())
    running = asyncio.create_task(batcher.run())
    for start in range(0, len(requests), at_once):
        await asyncio.gather(*(batcher.answer(policy, each, None) for each in requests[start : start + at_once]))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    batcher.close()


def cost(policy: PolicyModel, requests: Sequence[SampleRequest], at_once: int, passes: list[None]) -> tuple[float, int]:
    """Return CPU seconds and forward passes, each of which appends to ``passes``."""
    passes.clear()
    started = time.process_time()
    asyncio.run(answer(policy, requests, at_once))
    return time.process_time() - started, len(passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=128, help="of the model")
    rounds, width = (asked := parser.parse_args()).rounds, asked.width
    torch.set_num_threads(1)
    model = small_llama(width=width)
    passes: list[None] = []
    model.register_forward_pre_hook(lambda *_: passes.append(None))
    policy = PolicyModel(Manifest(model="policy"), model, byte_encoder(), GenerationRules.of(model, []))
    for name, requests in workloads().items():
        cost(policy, requests[:_ROWS], _ROWS, passes)
        taken = [[cost(policy, requests, at_once, passes) for at_once in (_ROWS, _REQUESTS)] for _ in range(rounds)]
        apart, joined = (min(each) for each in zip(*taken, strict=True))
        print(f"{name}: {apart[0]:.2f} s and {apart[1]} passes in batches that nobody joins")
        print(f"{name}: {joined[0]:.2f} s and {joined[1]} passes joined: {joined[0] / apart[0]:.2f} of the time")


if __name__ == "__main__":
    main()
