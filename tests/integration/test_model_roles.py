"""Versions beside the active one: canary, shadow, and those that stay warm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from support.file_models import Running, Weights, load, running
from support.grpc_servers import Serve
from support.statuses import failure, fields_of, reason_of

from rewardloop.formats.storing.active import Active, Share
from rewardloop.v1 import model_pb2
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.calls.errors import UnknownVersion
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.versions.host import VersionHost
from rewardloop_server.versions.pointer import ActivePointer


@pytest.fixture
async def server(serve: Serve, redis_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(serve, redis_url, tmp_path / "models") as server:
        yield server


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if is_so():
                return
            await asyncio.sleep(0.001)


async def until_states(server: Running, states: dict[str, str]) -> None:
    async with asyncio.timeout(10):
        while True:
            if await server.states() == states:
                return
            await asyncio.sleep(0.001)


async def test_delta_stays_warm_and_comes_back_without_a_load(server: Running) -> None:
    first, second = server.publish_deltas(2)
    for version in (first, second):
        await server.promote(version)
    assert await server.states() == {"1": "warm", first: "warm", second: "active"}
    loads = len(server.loads)
    await server.roll_back()
    await server.promote("1")
    await server.promote(second)
    assert len(server.loads) == loads
    assert not any(weights.is_closed for weights in server.loads)
    with server.host.lease(pin=first) as pinned:
        assert pinned.text == "delta 0"


async def test_warm_versions_are_bounded_and_the_longest_unused_goes(server: Running) -> None:
    deltas = server.publish_deltas(6)
    for version in deltas:
        await server.promote(version)
    assert await server.states() == {deltas[5]: "active", **dict.fromkeys(deltas[2:5], "warm")}
    open_ones = {weights.manifest.version for weights in server.loads if not weights.is_closed}
    assert open_ones == set(deltas[2:])
    with pytest.raises(UnknownVersion, match="is not warm here"), server.host.lease(pin=deltas[0]):
        pass


async def test_version_with_a_graph_of_its_own_is_freed_with_its_last_lease(server: Running) -> None:
    with server.host.lease() as leased:
        await server.promote("2")
        assert await server.states() == {"1": "draining", "2": "active"}
        assert not leased.is_closed
    assert leased.is_closed
    assert await server.states() == {"2": "active"}


async def test_version_that_is_draining_is_taken_back_and_not_loaded_again(server: Running) -> None:
    with server.host.lease() as leased:
        await server.promote("2")
        await server.promote("1")
        with server.host.lease() as again:
            assert again is leased
    assert not leased.is_closed
    assert [weights.manifest.version for weights in server.loads] == ["1", "2"]


async def test_canary_takes_a_stable_share_and_the_active_version_the_rest(server: Running) -> None:
    reply = await server.set_canary("2", 0.25)
    assert (reply.version.version.version, reply.version.state) == ("2", model_pb2.VERSION_STATE_CANARY)
    assert await server.states() == {"1": "active", "2": "canary"}
    assert await server.pointer.read("reward") == Active("1", (), canary=Share("2", 0.25))
    chosen = {}
    for key in (f"prompt {i}".encode() for i in range(2000)):
        with server.host.lease(key=key) as first, server.host.lease(key=key) as second:
            assert first is second
            chosen[key] = first.manifest.version
    assert 420 < sum(version == "2" for version in chosen.values()) < 580
    assert not (await server.set_canary("")).HasField("version")
    assert await server.states() == {"1": "active"}
    assert await server.pointer.read("reward") == Active("1", ())


async def test_new_canary_replaces_the_one_before_and_frees_it(server: Running) -> None:
    await server.set_canary("2")
    await server.set_shadow("2")
    await server.set_canary("3")
    assert await server.states() == {"1": "active", "3": "canary", "2": "shadow"}
    await server.set_shadow("3")
    assert await server.states() == {"1": "active", "3": "canary"}
    assert [weights.manifest.version for weights in server.loads if weights.is_closed] == ["2"]


@pytest.mark.parametrize("role", ["Canary", "Shadow"])
async def test_role_is_given_and_ended_only_if_the_expected_version_is_active(server: Running, role: str) -> None:
    call, request = getattr(server.stub, f"Set{role}"), getattr(model_pb2, f"Set{role}Request")
    given = {"1": "active", "2": role.lower()}
    await call(request(model="reward", version="2", share=0.5, expected_version="1"))
    assert await server.states() == given
    for version in ("3", ""):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(request(model="reward", version=version, share=0.5, expected_version="2"))
        assert (failed.value.code(), reason_of(failed.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "POINTER_MOVED")
        assert await server.states() == given
        active = await server.pointer.read("reward")
        assert active is not None
        assert (active.canary, active.shadow)[role == "Shadow"] == Share("2", 0.5)
    await call(request(model="reward", expected_version="1"))
    assert await server.states() == {"1": "active"}


async def test_promotion_and_rollback_end_canary_and_shadow(server: Running) -> None:
    await server.promote("2")
    for move in (server.roll_back, lambda: server.promote("1"), lambda: server.promote("2")):
        await server.set_canary("3", 0.9)
        await server.set_shadow("3", 1.0)
        await move()
        assert "3" not in await server.states()
        assert not server.host.takes_shadow(b"key")
        active = await server.pointer.read("reward")
        assert active is not None
        assert (active.version, active.canary, active.shadow) == (server.active, None, None)


async def test_promoting_the_canary_needs_no_load(server: Running) -> None:
    await server.set_canary("2")
    await server.promote("2")
    assert await server.states() == {"2": "active"}
    assert [weights.manifest.version for weights in server.loads] == ["1", "2"]


async def test_version_that_stops_being_active_while_its_canary_waits_is_loaded_for_it(server: Running) -> None:
    await server.promote("2")
    async with server.host.changing():
        waiting = asyncio.create_task(server.set_canary("2"))
        await asyncio.sleep(0.1)  # it may not have come this far: then it waits for nothing, and the test still holds
        await server.host.warm("1")
        await server.pointer.move("reward", "1", "meanwhile")
        server.host.activate("1")
    assert (await waiting).version.version.version == "2"
    assert await server.states() == {"1": "active", "2": "canary"}


async def test_what_is_no_canary_or_shadow_is_refused(server: Running, tmp_path: Path) -> None:
    nan = float("nan")
    for call, field in (
        (server.set_canary("2", 0.0), "share"),
        (server.set_canary("2", 1.0), "share"),
        (server.set_canary("2", nan), "share"),
        (server.set_canary("2", -0.1), "share"),
        (server.set_shadow("2", 1.1), "share"),
        (server.set_shadow("2", nan), "share"),
        (server.set_canary("1", 0.5), "version"),
        (server.set_shadow("1", 0.5), "version"),
        (server.set_canary("2", 0.5, model="policy"), "model"),
        (server.set_shadow("2", 0.5, model="policy"), "model"),
        (server.set_canary("", 0.5, model="judge"), "model"),
    ):
        error = await failure(call)
        assert (error.code(), fields_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    (tmp_path / "models" / "reward" / "2" / "weights").write_text("altered")
    for version, reason in (("99", "UNKNOWN_VERSION"), ("2", "CORRUPT_VERSION")):
        assert reason_of(await failure(server.set_canary(version))) == reason
        assert reason_of(await failure(server.set_shadow(version))) == reason
    assert await server.pointer.read("reward") == Active("1", ())
    assert await server.states() == {"1": "active"}


async def test_least_version_is_met_by_active_or_canary_and_by_nothing_else(server: Running) -> None:
    await server.promote("2")
    await server.set_canary("3", 0.01)
    for least, versions in ((1, {"2", "3"}), (3, {"3"})):
        for i in range(20):
            with server.host.lease(min_version=least, key=bytes([i])) as leased:
                assert leased.manifest.version in versions
    warm = r"version 4 or later is not warm here; warm: 2 \(active\), 3 \(canary\)"
    with pytest.raises(UnknownVersion, match=warm), server.host.lease(min_version=4):
        pass
    with pytest.raises(UnknownVersion), server.host.lease(pin="2", min_version=3):
        pass


async def test_other_replicas_converge_on_canary_and_shadow(server: Running, redis_url: str) -> None:
    redis = connect_redis(redis_url)
    replica: VersionHost[Weights] = VersionHost("reward", server.store, load, lambda *_: None)
    follower = asyncio.create_task(replica.follow(ActivePointer(redis), poll_s=0.001))

    async def converged(states: dict[str, int]) -> None:
        await until(lambda: {version: replica.state(version) for version in states} == states)

    stored, active = model_pb2.VERSION_STATE_STORED, model_pb2.VERSION_STATE_ACTIVE
    await server.set_canary("2", 0.5)
    await server.set_shadow("3", 0.5)
    await converged({"1": active, "2": model_pb2.VERSION_STATE_CANARY, "3": model_pb2.VERSION_STATE_SHADOW})
    for i in range(50):
        with server.host.lease(key=bytes([i])) as here, replica.lease(key=bytes([i])) as there:
            assert here.manifest.version == there.manifest.version
    await server.set_canary("")
    await converged({"1": active, "2": stored, "3": model_pb2.VERSION_STATE_SHADOW})
    await server.promote("2")
    await converged({"1": stored, "2": active, "3": stored})
    follower.cancel()
    await redis.aclose()


async def test_canary_that_does_not_load_elsewhere_holds_nothing_else_up(server: Running, redis_url: str) -> None:
    """The pointer may name what this server's store cannot give; the rest is followed, and what comes next too."""
    await server.pointer.assign("reward", "canary", Share("99", 0.5), "")
    await server.pointer.assign("reward", "shadow", Share("2", 0.5), "")
    await until_states(server, {"1": "active", "2": "shadow"})
    await server.pointer.move("reward", "3", "")
    await until_states(server, {"3": "active"})


async def test_canary_without_redis_is_refused_and_serves_nothing(
    serve: Serve, fresh_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    async with running(serve, fresh_redis.url, tmp_path / "models") as server:
        fresh_redis.kill()
        error = await failure(server.set_canary("2", 0.9))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")
        assert await server.states() == {"1": "active"}
        fresh_redis.start()
        await server.set_canary("2", 0.9)
        assert await server.states() == {"1": "active", "2": "canary"}
