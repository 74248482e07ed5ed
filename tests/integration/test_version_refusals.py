"""A version that must not be served is refused with its reason, counted, and what serves goes on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from onnx import TensorProto, helper
from structlog.testing import capture_logs
from support.grpc_servers import Serve
from support.reward_graphs import publish_sum_version, word_tokenizer, write_sum_graph
from support.signing_keys import key_pair
from support.statuses import failure, reason_of

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.signatures import signer, trusted_keys
from rewardloop.formats.store import ADAPTER, Manifest, ModelStore, Trunk
from rewardloop.v1 import model_pb2, model_pb2_grpc
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.versions.host import VersionHost
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.servicer import ModelServicer


@dataclass
class Server:
    """The ModelService over the real loader; version 1 is active."""

    stub: Any
    host: VersionHost[RewardModel]
    pointer: ActivePointer
    store: ModelStore
    metrics: ServerMetrics

    async def promote(self, version: str) -> None:
        await self.stub.Promote(model_pb2.PromoteRequest(model="reward", version=version))

    def serves_the_first(self) -> bool:
        with self.host.lease() as model:
            return model.manifest.version == "1"

    def refused(self, reason: str) -> float:
        labels = {"model": "reward", "reason": reason}
        return self.metrics.registry.get_sample_value("rewardloop_versions_refused_total", labels) or 0.0


@pytest.fixture
async def server(serve: Serve, redis_url: str, tmp_path: Path, metrics: ServerMetrics) -> AsyncIterator[Server]:
    async with running(serve, redis_url, ModelStore(tmp_path / "models"), metrics) as server:
        yield server


@asynccontextmanager
async def running(serve: Serve, redis_url: str, store: ModelStore, metrics: ServerMetrics) -> AsyncIterator[Server]:
    publish_sum_version(store)
    redis = connect_redis(redis_url)
    pointer = ActivePointer(redis)
    await pointer.initialise("reward", "1")
    pool = SessionPool(store, Device("cpu", 1, spin=False), metrics)
    host: VersionHost[RewardModel] = VersionHost(
        "reward", store, pool.load, metrics.switched, metrics.resident, on_refused=metrics.refused
    )
    follower = asyncio.create_task(host.follow(pointer, poll_s=0.01))
    await anext(host.changes())
    servicer = ModelServicer({"reward": host}, store, pointer, None)
    async with serve((model_pb2_grpc.add_ModelServiceServicer_to_server, servicer)) as channel:
        yield Server(model_pb2_grpc.ModelServiceStub(channel), host, pointer, store, metrics)
    assert not follower.done(), "nothing may end the task that follows the pointer"
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    await redis.aclose()


def publish_graph(store: ModelStore, change: Callable[[onnx.ModelProto], None]) -> None:
    """A version as `publish_sum_version` makes it, whose graph is changed before it is hashed."""

    def write(directory: Path) -> None:
        write_sum_graph(directory / "plain")
        model = onnx.load(directory / "plain")
        (directory / "plain").unlink()
        change(model)
        (directory / "model.onnx").write_bytes(model.SerializeToString())
        word_tokenizer().save(str(directory / "tokenizer.json"))

    text_format = TextFormat.for_encoder(word_tokenizer()).to_json()
    store.publish(Manifest("reward", text_format=text_format, max_length=64, heads=2), write)


def _stray_tensor(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="x", data_type=TensorProto.UINT8, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    model.graph.initializer.append(tensor)


def _custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", ["logits"], ["y"], domain="evil.example"))


def _altered(store: ModelStore) -> None:
    publish_sum_version(store)
    with Path(store.path("reward", 2), "tokenizer.json").open("a") as file:
        file.write(" ")


def _with_a_pickle(store: ModelStore) -> None:
    publish_sum_version(store)
    directory = Path(store.path("reward", 2))
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    raw = json.loads((directory / "manifest.json").read_text())
    raw["files"]["pytorch_model.bin"] = "0" * 64
    (directory / "manifest.json").write_text(json.dumps(raw))


def _with_a_link(store: ModelStore) -> None:
    publish_sum_version(store)
    graph = Path(store.path("reward", 2), "model.onnx")
    shutil.copy(graph, graph.parents[2] / "elsewhere")
    graph.unlink()
    os.symlink(graph.parents[2] / "elsewhere", graph)


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[ModelStore], None]:
    def damage(store: ModelStore) -> None:
        publish_sum_version(store)
        path = Path(store.path("reward", 2), "manifest.json")
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    return damage


def _published_with(**fields: Any) -> Callable[[ModelStore], None]:
    """A version whose publisher wrote such a manifest: digest and all are right."""

    def damage(store: ModelStore) -> None:
        first = store.manifest("reward", 1)
        directory = Path(store.path("reward", 1))
        manifest = replace(first, version="", digest="", **fields)
        store.publish(manifest, lambda target: _copy(directory, target))

    return damage


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))


def _adapter(data: bytes) -> Callable[[ModelStore], None]:
    def damage(store: ModelStore) -> None:
        trunk = store.manifest("reward", 1)
        tokenizer = Path(store.path("reward", 1), "tokenizer.json").read_bytes()

        def write(directory: Path) -> None:
            (directory / ADAPTER).write_bytes(data)
            (directory / "tokenizer.json").write_bytes(tokenizer)

        store.publish(replace(trunk, version="", digest="", trunk=Trunk("1", trunk.digest)), write)

    return damage


_FORMAT = TextFormat.for_encoder(word_tokenizer()).to_json()

BAD: dict[str, tuple[str, Callable[[ModelStore], None]]] = {
    "altered file": ("CORRUPT_VERSION", _altered),
    "manifest of another kind": ("CORRUPT_VERSION", _manifest(lambda raw: raw.update(files=[]))),
    "manifest without a field": ("CORRUPT_VERSION", _manifest(lambda raw: raw.pop("data"))),
    "endless length": ("CORRUPT_VERSION", _published_with(max_length=10**15)),
    "pickle": ("UNSAFE_VERSION", _with_a_pickle),
    "link": ("UNSAFE_VERSION", _with_a_link),
    "tensor elsewhere": ("UNSAFE_VERSION", lambda store: publish_graph(store, _stray_tensor)),
    "custom operator": ("UNSAFE_VERSION", lambda store: publish_graph(store, _custom_operator)),
    "no graph": ("NOT_LOADABLE", lambda store: publish_graph(store, lambda model: model.graph.ClearField("node"))),
    "no text format": ("NOT_LOADABLE", _published_with(text_format={})),
    "tokens beyond numbers": ("NOT_LOADABLE", _published_with(text_format={**_FORMAT, "opening": [2**70]})),
    "padding beyond numbers": ("NOT_LOADABLE", _published_with(text_format={**_FORMAT, "pad": 2**70})),
    "more heads": ("NOT_LOADABLE", _published_with(heads=3)),
    "no adapter": ("NOT_LOADABLE", _adapter(b"")),
    "garbage for an adapter": ("NOT_LOADABLE", _adapter(b"\x1c\x00\x00\x00TORT" + b"\xff" * 64)),
}


@pytest.mark.parametrize("name", BAD)
async def test_refused_version_has_its_reason_and_the_old_one_serves_on(server: Server, name: str) -> None:
    reason, damage = BAD[name]
    await asyncio.to_thread(damage, server.store)
    error = await failure(server.promote("2"))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    assert server.refused(reason) == 1
    assert server.serves_the_first()
    active = await server.pointer.read("reward")
    assert active is not None
    assert active.version == "1"


async def test_a_library_s_own_words_are_in_the_log_and_not_in_the_answer(server: Server) -> None:
    damage = BAD["no graph"][1]
    await asyncio.to_thread(damage, server.store)
    with capture_logs() as logs:
        error = await failure(server.promote("2"))
    assert re.fullmatch(r"reward 2 does not load: \w+, whose text is in the server's log", error.details() or "")
    (refused,) = (entry for entry in logs if entry["event"] == "version refused")
    assert refused["error"] == error.details()
    assert "[ONNXRuntimeError]" in refused["cause"]


async def test_pointer_moved_to_a_refused_version_ends_nothing(server: Server) -> None:
    _published_with(text_format={**_FORMAT, "opening": [2**70]})(server.store)
    await server.pointer.move("reward", "2", "by another replica")
    for _ in range(3000):
        if server.refused("NOT_LOADABLE"):
            break
        await asyncio.sleep(0.01)
    assert server.refused("NOT_LOADABLE")
    assert server.serves_the_first()
    await server.pointer.move("reward", "1", "back")


async def test_version_that_fails_again_in_the_same_way_is_tried_again_but_logged_once(server: Server) -> None:
    _published_with(text_format={**_FORMAT, "opening": [2**70]})(server.store)
    with capture_logs() as logs:
        await server.pointer.move("reward", "2", "by another replica")
        for _ in range(3000):
            if server.refused("NOT_LOADABLE") >= 4:
                break
            await asyncio.sleep(0.01)
    assert server.refused("NOT_LOADABLE") >= 4
    events = [entry["event"] for entry in logs]
    assert events.count("version refused") == 1
    assert events.count("cannot follow the pointer") == 1
    await server.pointer.move("reward", "1", "back")


async def test_unsigned_version_is_untrusted(
    serve: Serve, redis_url: str, tmp_path: Path, metrics: ServerMetrics
) -> None:
    private, public = key_pair(tmp_path, "a")
    path = tmp_path / "models"
    store = ModelStore(path, signer=signer(str(private)), trusted=trusted_keys(str(public)))
    async with running(serve, redis_url, store, metrics) as server:
        publish_sum_version(ModelStore(path))
        error = await failure(server.promote("2"))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "UNTRUSTED_VERSION")
        assert server.refused("UNTRUSTED_VERSION") == 1
        publish_sum_version(store)
        await server.promote("3")
        assert not server.serves_the_first()
