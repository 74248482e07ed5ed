"""A serving process's scoring with several reward models, over real gRPC, a real store and a real redis-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from redis.asyncio import Redis

from rewardloop.formats.store import ModelStore
from rewardloop.v1 import common_pb2, model_pb2, model_pb2_grpc, reward_pb2, reward_pb2_grpc
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring_parts import Scoring, build_scoring, mixtures_of
from rewardloop_server.serving import reward_servicer
from rewardloop_server.settings import ServeSettings
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.servicer import ModelServicer
from support.grpc_servers import serving


@dataclass
class NamedModels:
    """The services as callers see them, and what is behind."""

    scoring: Scoring
    store: ModelStore
    pointer: ActivePointer
    metrics: ServerMetrics
    channel: grpc.aio.Channel

    async def score(self, model: str = "", responses: tuple[str, ...] = ("beta", "gamma"), **how: Any) -> Any:
        return await self._rewards.Score(group(model, responses, **how), timeout=20)

    async def batch(self, *groups: reward_pb2.ScoreRequest) -> Any:
        return await self._rewards.ScoreBatch(reward_pb2.ScoreBatchRequest(groups=groups), timeout=20)

    async def stream(self, *groups: reward_pb2.ScoreRequest) -> dict[str, reward_pb2.ScoreStreamResponse]:
        requests = [reward_pb2.ScoreStreamRequest(request_id=str(i), request=each) for i, each in enumerate(groups)]
        return {reply.request_id: reply async for reply in self._rewards.ScoreStream(iter(requests), timeout=20)}

    async def promote(self, model: str, version: str) -> Any:
        return await self._models.Promote(model_pb2.PromoteRequest(model=model, version=version), timeout=20)

    async def versions(self, model: str) -> Any:
        return await self._models.ListVersions(model_pb2.ListVersionsRequest(model=model), timeout=20)

    def figure(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"rewardloop_{name}", labels)

    async def until_active(self, *models: str) -> None:
        async with asyncio.timeout(30):
            while any(self.scoring.hosts[model].active is None for model in models):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)

    @property
    def models(self) -> Any:
        return model_pb2_grpc.ModelServiceStub(self.channel)

    _models = models

    @property
    def _rewards(self) -> Any:
        return reward_pb2_grpc.RewardServiceStub(self.channel)


def group(model: str = "", responses: tuple[str, ...] = ("beta", "gamma"), **how: Any) -> reward_pb2.ScoreRequest:
    return reward_pb2.ScoreRequest(
        prompt=common_pb2.Prompt(text="alpha"), responses=responses, **({"model": model} if model else {}), **how
    )


@asynccontextmanager
async def named_models(
    redis: Redis, directory: Path, names: tuple[str, ...], mixtures: str = "", **settings: Any
) -> AsyncIterator[NamedModels]:
    """Serve "reward" and the named models from the store under ``directory``, with the text of a file of mixtures."""
    store, metrics = ModelStore(directory / "models"), ServerMetrics()
    path: Mapping[str, Any] = {}
    if mixtures:
        (directory / "mixtures.toml").write_text(mixtures)
        path = {"mixtures": directory / "mixtures.toml"}
    given = ServeSettings(
        store=store.url,
        reward_models=list(names),
        load_probe="never",
        intra_op_threads=1,
        spin=False,
        engine_nice=0,
        **path,
        **settings,
    )
    pointer = ActivePointer(redis, store.pointers)
    scoring = build_scoring(given, store, mixtures_of(given), Freshness(redis, metrics), metrics, None)
    models = ModelServicer(scoring.hosts, store, pointer, None)
    work = [scoring.watch.run(), scoring.batcher.run(), *(h.follow(pointer, 0.05) for h in scoring.hosts.values())]
    async with serving(
        metrics,
        (reward_pb2_grpc.add_RewardServiceServicer_to_server, reward_servicer(given, scoring, metrics)),
        (model_pb2_grpc.add_ModelServiceServicer_to_server, models),
    ) as channel:
        tasks = [asyncio.create_task(each) for each in work]
        try:
            yield NamedModels(scoring, store, pointer, metrics, channel)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            scoring.close()
