"""The ModelService over real gRPC, a real store and a real redis-server, for versions that are one small file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardloop.formats.store import Manifest, ModelStore, Trunk
from rewardloop.v1 import model_pb2, model_pb2_grpc
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.versions.host import VersionHost
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.servicer import ModelServicer
from support.grpc_servers import Serve


@dataclass
class Weights:
    """A model version that is one file."""

    manifest: Manifest
    text: str
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True


STATE = "VERSION_STATE_"


def load(manifest: Manifest, directory: Path) -> Weights:
    text = (directory / "weights").read_text()
    if text == "broken":
        raise NotLoadable(f"reward {manifest.version} does not load")
    return Weights(manifest, text)


def publish(store: ModelStore, text: str, trunk: Trunk | None = None) -> str:
    manifest = Manifest(model="reward", parent="0", metrics={"accuracy": 0.75}, trunk=trunk)
    return store.publish(manifest, lambda directory: _write(directory, text)).version


def _write(directory: Path, text: str) -> None:
    (directory / "weights").write_text(text)


@dataclass
class Running:
    stub: Any
    host: VersionHost[Weights]
    pointer: ActivePointer
    store: ModelStore
    loads: list[Weights]

    def publish_deltas(self, count: int) -> list[str]:
        """Versions over the graph of version 1."""
        trunk = Trunk("1", self.store.manifest("reward", 1).digest)
        return [publish(self.store, f"delta {number}", trunk) for number in range(count)]

    async def states(self) -> dict[str, str]:
        """Of the versions in memory."""
        reply = await self.stub.ListVersions(model_pb2.ListVersionsRequest(model="reward"))
        states = {v.version.version: model_pb2.VersionState.Name(v.state).removeprefix(STATE) for v in reply.versions}
        return {version: state.lower() for version, state in states.items() if state != "STORED"}

    async def set_canary(self, version: str, share: float = 0.5, model: str = "reward") -> model_pb2.SetCanaryResponse:
        request = model_pb2.SetCanaryRequest(model=model, version=version, share=share)
        reply: model_pb2.SetCanaryResponse = await self.stub.SetCanary(request)
        return reply

    async def set_shadow(self, version: str, share: float = 0.5, model: str = "reward") -> model_pb2.SetShadowResponse:
        request = model_pb2.SetShadowRequest(model=model, version=version, share=share)
        reply: model_pb2.SetShadowResponse = await self.stub.SetShadow(request)
        return reply

    async def promote(self, version: str) -> model_pb2.PromoteResponse:
        request = model_pb2.PromoteRequest(model="reward", version=version, reason="test")
        reply: model_pb2.PromoteResponse = await self.stub.Promote(request)
        return reply

    async def roll_back(self) -> model_pb2.RollbackResponse:
        reply: model_pb2.RollbackResponse = await self.stub.Rollback(model_pb2.RollbackRequest(model="reward"))
        return reply

    @property
    def active(self) -> str | None:
        return self.host.active.version if self.host.active else None


@asynccontextmanager
async def running(serve: Serve, redis_url: str, directory: Path, versions: int = 3) -> AsyncIterator[Running]:
    """A server that follows the pointer as fast as it can, so that a race with it shows."""
    store = ModelStore(directory)
    for number in range(versions):
        publish(store, f"weights {number + 1}")
    redis = connect_redis(redis_url)
    pointer = ActivePointer(redis)
    await pointer.initialise("reward", "1")
    loads: list[Weights] = []

    def load_counted(manifest: Manifest, directory: Path) -> Weights:
        loads.append(load(manifest, directory))
        return loads[-1]

    host: VersionHost[Weights] = VersionHost("reward", store, load_counted, lambda *_: None)
    follower = asyncio.create_task(host.follow(pointer, poll_s=0.001))
    await anext(host.changes())
    servicer = ModelServicer({"reward": host}, store, pointer, None)
    async with serve((model_pb2_grpc.add_ModelServiceServicer_to_server, servicer)) as channel:
        yield Running(model_pb2_grpc.ModelServiceStub(channel), host, pointer, store, loads)
    follower.cancel()
    await redis.aclose()
