"""The ModelService: versions listed, shown, promoted, rolled back and watched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from support.file_models import Running, publish, running
from support.grpc_servers import Serve
from support.statuses import failure, fields_of, reason_of

from rewardloop.formats import keys
from rewardloop.formats.storing.active import Active
from rewardloop.formats.storing.evaluated import Evaluated
from rewardloop.v1 import model_pb2
from rewardloop_local.redis_server import EmbeddedRedis


@pytest.fixture
async def server(serve: Serve, redis_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(serve, redis_url, tmp_path / "models") as server:
        yield server


async def test_versions_are_listed_newest_first_with_their_state(server: Running) -> None:
    reply = await server.stub.ListVersions(model_pb2.ListVersionsRequest(model="reward"))
    listed = [(v.version.version, v.state) for v in reply.versions]
    stored, active = model_pb2.VERSION_STATE_STORED, model_pb2.VERSION_STATE_ACTIVE
    assert listed == [("3", stored), ("2", stored), ("1", active)]
    assert dict(reply.versions[0].metrics) == {"accuracy": 0.75}
    assert reply.versions[0].create_time.seconds > 1_700_000_000
    assert len(reply.versions[0].version.digest) == 64


async def test_broken_manifest_hides_no_other_version(server: Running, tmp_path: Path) -> None:
    (tmp_path / "models" / "reward" / "2" / "manifest.json").write_text("{")
    reply = await server.stub.ListVersions(model_pb2.ListVersionsRequest(model="reward"))
    assert [v.version.version for v in reply.versions] == ["3", "1"]


async def test_version_is_shown_with_its_manifest(server: Running) -> None:
    shown = (await server.stub.GetVersion(model_pb2.GetVersionRequest(model="reward", version="2"))).version
    assert json.loads(shown.manifest_json) == json.loads(server.store.manifest("reward", 2).to_json())
    active = (await server.stub.GetVersion(model_pb2.GetVersionRequest(model="reward"))).version
    assert (active.version.version, active.state) == ("1", model_pb2.VERSION_STATE_ACTIVE)


async def test_what_an_evaluation_found_is_listed_and_shown(server: Running, tmp_path: Path) -> None:
    digest = server.store.manifest("reward", 2).digest
    server.store.evaluated.keep("reward", "2", Evaluated(digest, 1_700_000_000.25, "reward 1", {"accuracy": 0.7}, "r"))
    reply = await server.stub.ListVersions(model_pb2.ListVersionsRequest(model="reward"))
    assert [v.HasField("evaluation") for v in reply.versions] == [False, True, False]
    shown = (await server.stub.GetVersion(model_pb2.GetVersionRequest(model="reward", version="2"))).version
    assert shown.evaluation == reply.versions[1].evaluation
    assert shown.evaluation.evaluate_time.ToMilliseconds() == 1_700_000_000_250
    assert (shown.evaluation.against, shown.evaluation.report_id) == ("reward 1", "r")
    assert dict(shown.evaluation.figures) == {"accuracy": 0.7}
    (tmp_path / "models" / "reward" / ".evaluated" / "2.json").unlink()
    (tmp_path / "models" / "reward" / ".evaluated" / "2.json").mkdir()  # a version is shown without it
    again = (await server.stub.GetVersion(model_pb2.GetVersionRequest(model="reward", version="2"))).version
    assert not again.HasField("evaluation")


async def test_promotion_is_served_here_when_it_returns_and_stays(server: Running) -> None:
    for version, before in (("2", "1"), ("3", "2"), ("1", "3"), ("2", "1")):
        reply = await server.promote(version)
        assert server.active == version
        assert (reply.version.version.version, reply.previous_version) == (version, before)
        assert reply.version.state == model_pb2.VERSION_STATE_ACTIVE
        await asyncio.sleep(0.02)
        assert server.active == version
    assert await server.pointer.read("reward") == Active("2", ("1", "3", "2", "1"))


async def test_promotion_of_the_active_version_changes_nothing(server: Running) -> None:
    assert (await server.promote("1")).previous_version == "1"
    assert await server.pointer.read("reward") == Active("1", ())


async def test_rollback_goes_back_step_by_step_until_there_is_nothing(server: Running) -> None:
    await server.promote("2")
    await server.promote("3")
    first = await server.roll_back()
    assert (first.version.version.version, first.previous_version) == ("2", "3")
    await server.roll_back()
    assert server.active == "1"
    error = await failure(server.roll_back())
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "NOTHING_TO_ROLL_BACK")
    assert server.active == "1"


def by_leader(server: Running, leader_epoch: int, version: str = "3", **fields: Any) -> Any:
    request = model_pb2.PromoteRequest(model="reward", version=version, leader_epoch=leader_epoch, **fields)
    return server.stub.Promote(request)


async def test_trainer_that_no_longer_leads_promotes_nothing(server: Running, redis: Redis) -> None:
    await redis.set(keys.TRAINER_EPOCH, 6)
    await by_leader(server, 5)
    await server.promote("1")
    error = await failure(by_leader(server, 4))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "OVERTAKEN")
    assert server.active == "1"
    await by_leader(server, 6)
    assert server.active == "3"


async def test_an_epoch_that_nobody_led_with_is_refused_and_ends_no_learning(server: Running, redis: Redis) -> None:
    await redis.set(keys.TRAINER_EPOCH, 6)
    error = await failure(by_leader(server, 2**63))
    assert (error.code(), fields_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, ["leader_epoch"])
    await by_leader(server, 6)
    assert server.active == "3"


async def test_a_rollback_holds_the_promotions_of_trainers_until_a_person_promotes(
    server: Running, redis: Redis
) -> None:
    await redis.set(keys.TRAINER_EPOCH, 6)
    await by_leader(server, 5, "2")
    await server.roll_back()
    error = await failure(by_leader(server, 6))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "PROMOTION_HELD")
    assert (await server.pointer.read("reward")) == Active("1", (), is_held=True)
    await server.promote("1")  # a person keeps it
    await by_leader(server, 6)
    assert server.active == "3"


async def test_a_promotion_needs_the_version_that_it_expects(server: Running, redis: Redis) -> None:
    await redis.set(keys.TRAINER_EPOCH, 1)
    error = await failure(by_leader(server, 1, expected_version="2"))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "POINTER_MOVED")
    assert server.active == "1"
    await by_leader(server, 1, expected_version="1")
    assert server.active == "3"


async def test_two_rollbacks_at_once_go_back_one_version(server: Running) -> None:
    await server.promote("2")
    await server.promote("3")
    request = model_pb2.RollbackRequest(model="reward", expected_version="3")
    outcomes = await asyncio.gather(*(server.stub.Rollback(request) for _ in range(2)), return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert [reason_of(each) for each in refused] == ["POINTER_MOVED"]
    assert server.active == "2"


@pytest.mark.parametrize("version", ["9" * 300, "\u0663", "9" * 19])
async def test_a_version_that_no_store_has_is_not_found(server: Running, version: str) -> None:
    error = await failure(server.stub.GetVersion(model_pb2.GetVersionRequest(model="reward", version=version)))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_VERSION")


@pytest.mark.parametrize("odd", ['"metrics": {"x": 1%s}' % ("0" * 400), '"notes": {"x": "\\ud800"}'])
async def test_one_odd_manifest_hides_no_other_version(server: Running, tmp_path: Path, odd: str) -> None:
    name = odd.partition(":")[0].strip('"')
    path = tmp_path / "models" / "reward" / "2" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[name]
    path.write_text(json.dumps(manifest)[:-1] + f", {odd}}}")
    listed = await server.stub.ListVersions(model_pb2.ListVersionsRequest(model="reward"))
    assert [each.version.version for each in listed.versions] == ["3", "1"]
    error = await failure(server.stub.GetVersion(model_pb2.GetVersionRequest(model="reward", version="2")))
    assert reason_of(error) == "CORRUPT_VERSION"


async def test_bad_versions_never_become_active(server: Running, tmp_path: Path) -> None:
    broken = publish(server.store, "broken")
    (tmp_path / "models" / "reward" / "2" / "weights").write_text("altered")
    for version, code, reason in (
        ("99", grpc.StatusCode.NOT_FOUND, "UNKNOWN_VERSION"),
        ("../1", grpc.StatusCode.NOT_FOUND, "UNKNOWN_VERSION"),
        ("2", grpc.StatusCode.FAILED_PRECONDITION, "CORRUPT_VERSION"),
        (broken, grpc.StatusCode.FAILED_PRECONDITION, "NOT_LOADABLE"),
    ):
        error = await failure(server.promote(version))
        assert (error.code(), reason_of(error)) == (code, reason)
    assert server.active == "1"
    assert await server.pointer.read("reward") == Active("1", ())


async def test_watch_gives_the_active_version_then_each_change(server: Running) -> None:
    watch = server.stub.WatchVersions(model_pb2.WatchVersionsRequest(model="reward"))
    seen = [(await watch.read()).active.version.version]
    for version in ("2", "3"):
        await server.promote(version)
        seen.append((await watch.read()).active.version.version)
    assert seen == ["1", "2", "3"]


async def test_model_of_another_name_is_refused(server: Running) -> None:
    error = await failure(server.stub.GetVersion(model_pb2.GetVersionRequest(model="judge")))
    assert (error.code(), fields_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, ["model"])
    watch = server.stub.WatchVersions(model_pb2.WatchVersionsRequest(model=""))
    assert fields_of(await failure(watch.read())) == ["model"]
    assert fields_of(await failure(server.promote(""))) == ["version"]


async def test_promotion_without_redis_changes_nothing(
    serve: Serve, fresh_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    async with running(serve, fresh_redis.url, tmp_path / "models") as server:
        with server.host.lease() as before:
            fresh_redis.kill()
            error = await failure(server.promote("2"))
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")
            assert server.active == "1"
            with server.host.lease() as after:
                assert after is before
        assert not before.is_closed
        fresh_redis.start()
        await server.promote("2")
        assert server.active == "2"
        assert before.is_closed


async def test_promotions_at_once_end_where_the_pointer_is(server: Running) -> None:
    await asyncio.gather(*(server.promote(version) for version in ("2", "3", "1", "3", "2")))
    active = await server.pointer.read("reward")
    assert active is not None
    assert server.active == active.version
