"""What the Python around a run costs a request: a graph that costs next to nothing, no network, CPU time.

    python tests/bench/request_overhead.py [--profile]

CPU time, least of eight, so that the figures hold on a busy machine; they include tokenizing and ONNX Runtime's call.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.reward_graphs import WORDS, publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_server.calls.validate import Limits
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.mixing.scorers import Scorers
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.cache import ScoreCache
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.scoring.score_group import GroupScorer
from rewardloop_server.scoring.servicer import BulkLimits, RewardServicer
from rewardloop_server.scoring.tokenize import TokenizePool

GROUPS, WORDS_A_TEXT = 1024, 30  # 64 tokens with the special ones


class Host:
    """One version, always; and what wants to hear of replies hears nothing."""

    def __init__(self, model: RewardModel) -> None:
        self._model = model

    @contextmanager
    def lease(self, *_: object) -> Iterator[RewardModel]:
        yield self._model

    def answered(self, *_: object) -> None:
        pass


class Context:
    def time_remaining(self) -> float:
        return 60.0

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


def batch() -> reward_pb2.ScoreBatchRequest:
    def text() -> str:
        return " ".join(random.choices(WORDS, k=WORDS_A_TEXT))

    groups = (reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text=text()), responses=[text()]) for _ in range(GROUPS))
    return reward_pb2.ScoreBatchRequest(groups=groups)


async def main() -> None:
    store, metrics = ModelStore(tempfile.mkdtemp()), ServerMetrics()
    manifest = publish_sum_version(store, max_length=128)
    pool = SessionPool(store, Device("cpu", 1, spin=False), metrics)
    host = Host(pool.load(manifest, store.fetch("reward", manifest.version)))
    batcher = Batcher(
        token_budget=8192,
        lanes={lane: LaneLimits(262_144, 5.0, 0.05) for lane in QUEUE_LANES},
        trainer_max_wait_s=0.5,
        metrics=metrics,
    )
    scorer = GroupScorer(
        host,  # type: ignore[arg-type]
        TokenizePool(2),
        batcher,
        ScoreCache(max_mib=0, lanes=(), metrics=metrics),
        host,  # type: ignore[arg-type]
        host,  # type: ignore[arg-type]
        metrics,
    )
    servicer = RewardServicer(
        Scorers({"reward": scorer}, {}), batcher, Limits(), BulkLimits(GROUPS, 256, 32_768), metrics
    )
    engine = asyncio.create_task(batcher.run())
    request, context = batch(), Context()
    least = {"ScoreBatch of 1,024": float("inf"), "Score, one by one": float("inf")}
    for _ in range(8):
        started = time.process_time()
        reply = await servicer.ScoreBatch(request, context)  # type: ignore[arg-type]
        least["ScoreBatch of 1,024"] = min(least["ScoreBatch of 1,024"], (time.process_time() - started) / GROUPS)
        assert all(item.HasField("result") for item in reply.items)
        started = time.process_time()
        for group in request.groups[:100]:
            await servicer.Score(group, context)  # type: ignore[arg-type]
        least["Score, one by one"] = min(least["Score, one by one"], (time.process_time() - started) / 100)
    for name, seconds in least.items():
        print(f"{name}: {seconds * 1e6:.0f} us of CPU a group ({os.cpu_count()} cores)")
    if "--profile" in sys.argv:
        with cProfile.Profile() as profile:
            await servicer.ScoreBatch(request, context)  # type: ignore[arg-type]
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    engine.cancel()
    await asyncio.gather(engine, return_exceptions=True)


asyncio.run(main())
os._exit(0)  # the tokenizer's threads have nothing left to do
