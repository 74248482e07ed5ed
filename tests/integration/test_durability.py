"""What the connected Redis does with what it is told: found out, shown, and said if it is not durable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.processes import ServeProcess
from support.redis_processes import RedisProcess, running, until
from support.reward_graphs import publish_sum_version
from typer.testing import CliRunner

from rewardloop.formats.store import ModelStore
from rewardloop.formats.storing.active import Active, first_pointer
from rewardloop_cli.main import app
from rewardloop_client import Feedback, RewardloopClient
from rewardloop_local.ports import free_port
from rewardloop_local.redis_server import find_redis_server
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.replication import Replication
from rewardloop_server.calls.vocabulary import DURABILITIES
from rewardloop_server.observe.durability import RedisState, poll_durability, redis_state
from rewardloop_server.observe.metrics import ServerMetrics

RESTRICTED = "user default on nopass ~* +@all -@admin -@dangerous"


@contextmanager
def redis_with(directory: Path, *lines: str) -> Iterator[RedisProcess]:
    port = free_port()
    process = RedisProcess(directory / "redis", port, [f"port {port}", *lines], find_redis_server())
    with running(process):
        yield process


def url_of(process: RedisProcess) -> str:
    return f"redis://127.0.0.1:{process.port}/0"


@pytest.mark.parametrize(
    ("lines", "durability"),
    [
        (["appendonly yes", "appendfsync always"], "always"),
        (["appendonly yes", "appendfsync everysec"], "everysec"),
        (["appendonly yes", "appendfsync no"], "no"),
        (["save 3600 1"], "snapshots"),
        ([], "memory"),
        (["appendonly yes", f"{RESTRICTED} +info"], "appended"),
        ([f"{RESTRICTED} +info"], "not_appended"),
        ([RESTRICTED], "unknown"),
    ],
)
def test_durability_is_found_out_as_far_as_this_user_may_ask(tmp_path: Path, lines: list[str], durability: str) -> None:
    async def ask(url: str) -> RedisState:
        redis = connect_redis(url)
        try:
            return await redis_state(redis, "server")
        finally:
            await redis.aclose()

    with redis_with(tmp_path, *lines) as process:
        state = asyncio.run(ask(url_of(process)))
    assert state == RedisState(durability, None if durability == "unknown" else 0)  # type: ignore[arg-type]


def shown(metrics: ServerMetrics) -> set[str]:
    value = metrics.registry.get_sample_value
    return {each for each in DURABILITIES if value("rewardloop_redis_durability", {"durability": each})}


async def polled(redis: Redis, metrics: ServerMetrics, holds: str) -> None:
    task = asyncio.create_task(poll_durability(metrics, redis, "server", Replication(redis), every_s=0.02))
    async with asyncio.timeout(20):
        while shown(metrics) != {holds}:  # noqa: ASYNC110 - what sets it is under test
            await asyncio.sleep(0.01)
    task.cancel()


def test_metric_follows_a_change_and_an_absence(tmp_path: Path, metrics: ServerMetrics) -> None:
    async def follow(process: RedisProcess) -> None:
        redis = connect_redis(url_of(process))
        await polled(redis, metrics, "memory")
        await redis.config_set("appendonly", "yes")
        await redis.config_set("appendfsync", "always")
        await polled(redis, metrics, "always")
        process.kill()
        await polled(redis, metrics, "unknown")
        process.start()
        await polled(redis, metrics, "memory")
        await redis.aclose()

    with redis_with(tmp_path) as process:
        asyncio.run(follow(process))


def status_of(server: ServeProcess) -> str:
    arguments = ["--server", server.address, "--server-metrics", f"http://127.0.0.1:{server.metrics_port}"]
    result = CliRunner().invoke(app, ["status", *arguments, "--trainer-metrics", "http://127.0.0.1:1"])
    return " ".join(result.output.replace("│", " ").split())


@contextmanager
def started(server: ServeProcess) -> Iterator[ServeProcess]:
    server.start()
    try:
        server.wait_until_serving()
        yield server
    finally:
        server.kill()


@pytest.mark.long
def test_redis_without_a_file_is_told_in_log_and_status(tmp_path: Path) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    with redis_with(tmp_path) as process:
        server = ServeProcess(tmp_path / "models", url_of(process), tmp_path / "serve.log", ["--log-format", "json"])
        with started(server):
            until(lambda: "no append-only file" in server.log_path.read_text())
            lines = [json.loads(line) for line in server.log_path.read_text().splitlines() if line.startswith("{")]
            (warning,) = [line for line in lines if "no append-only file" in line["event"]]
            assert (warning["level"], warning["durability"]) == ("warning", "memory")
            assert "Redis, if it is killed LOSES everything" in status_of(server)


@pytest.mark.long
def test_server_that_starts_while_redis_is_away_serves_the_stores_pointer(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    for factor in (1.0, 2.0, 3.0):
        publish_sum_version(store, factor=factor)
    rolled_back = first_pointer("2", "").promoted("3", "", 0).rolled_back("worse")
    store.pointers.keep("reward", rolled_back)
    with redis_with(tmp_path, "appendonly yes", "appendfsync always") as process:
        process.kill()
        server = ServeProcess(tmp_path / "models", url_of(process), tmp_path / "serve.log")
        with started(server), RewardloopClient(server.address, timeout_s=30) as client:
            assert client.score("alpha", ["beta"]).model_version.version == "2"
            assert "Redis is away: the store's copy of the pointer is followed" in server.log_path.read_text()
            assert "pointer, reward read from the store, because Redis is away" in status_of(server)
            process.start()  # without any data
            until(lambda: bool(process.client().hexists("rewardloop:{models}:active", "reward")))
            raw = process.client().hget("rewardloop:{models}:active", "reward")
            assert Active.from_json(raw or b"") == Active("2", (), is_held=True)
            until(lambda: "read from the store" not in status_of(server))
            client.record(Feedback.thumb(prompt="alpha", responses=["beta"], response=0, up=True))
