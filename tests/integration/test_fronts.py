"""Several processes answer as one does: the same scores, one queue, one page of metrics, the same quotas."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.doors import CallersFile
from support.fronts import FrontedService, serving_by_fronts, until_true
from support.processes import ServeProcess, serving
from support.reward_graphs import WORDS, publish_sum_version

from rewardloop.formats.store import Calibration, ModelStore
from rewardloop.v1 import common_pb2, operations_pb2, operations_pb2_grpc, reward_pb2, reward_pb2_grpc

CONNECTIONS = 6


def a_group(rng: random.Random, responses: int = 2) -> reward_pb2.ScoreRequest:
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 25))) for _ in range(responses + 1)]
    return reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text=texts[0]), responses=texts[1:])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    publish_sum_version(store, calibration=Calibration(scale=0.5, offset=-1.0, length_slope=0.1))
    return Path(store.url)


@pytest.fixture(scope="module")
def service(store: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontedService]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with serving_by_fronts(store, redis_url, log, "--streams", "1", "--cache-mib", "0") as service:
        yield service


@pytest.fixture(scope="module")
def alone(store: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serving(store, redis_url, tmp_path_factory.mktemp("alone") / "serve.log", "--cache-mib", "0") as process:
        yield process


async def stubs(address: str, stack: AsyncExitStack, count: int = CONNECTIONS) -> list[Any]:
    """One for each of so many connections."""
    own = (("grpc.use_local_subchannel_pool", 1),)
    channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address, options=own)) for _ in range(count)]
    return [reward_pb2_grpc.RewardServiceStub(channel) for channel in channels]  # type: ignore[no-untyped-call]


def said(reply: reward_pb2.ScoreResponse) -> tuple[Any, ...]:
    """All of a reply but its timings."""
    scores = [(s.score, s.logit, s.uncertainty, s.token_count, s.truncated) for s in reply.scores]
    return (*scores, reply.model_version.digest)


async def test_scores_are_those_of_one_process_bit_for_bit_under_load(
    service: FrontedService, alone: ServeProcess
) -> None:
    rng = random.Random(1)
    groups = [a_group(rng, rng.randint(1, 5)) for _ in range(150)]
    async with AsyncExitStack() as stack:
        (one,) = await stubs(alone.address, stack, 1)
        several = await stubs(service.address, stack)
        expected = [said(await one.Score(group)) for group in groups]
        assert len(set(expected)) > 100

        singles = await asyncio.gather(*(several[i % CONNECTIONS].Score(g) for i, g in enumerate(groups)))
        assert [said(reply) for reply in singles] == expected

        batches = await asyncio.gather(*(s.ScoreBatch(reward_pb2.ScoreBatchRequest(groups=groups)) for s in several))
        for batch in batches:
            assert [said(item.result) for item in batch.items] == expected

        async def stream(stub: Any) -> dict[str, tuple[Any, ...]]:
            async def requests() -> AsyncIterator[reward_pb2.ScoreStreamRequest]:
                for i, group in enumerate(groups):
                    yield reward_pb2.ScoreStreamRequest(request_id=str(i), request=group)

            return {reply.request_id: said(reply.result) async for reply in stub.ScoreStream(requests())}

        for replies in await asyncio.gather(*(stream(stub) for stub in several)):
            assert [replies[str(i)] for i in range(len(groups))] == expected


async def test_both_fronts_answer_and_one_page_shows_every_process(
    service: FrontedService, alone: ServeProcess
) -> None:
    async with service.channel_to("front-0") as one, service.channel_to("front-1") as other:
        for channel in (one, other):
            await reward_pb2_grpc.RewardServiceStub(channel).Score(a_group(random.Random(2)))
        status = await operations_pb2_grpc.OperationsServiceStub(one).GetStatus(operations_pb2.GetStatusRequest())
    for front in ("front-0", "front-1"):
        labels = {"method": "RewardService/Score", "code": "OK", "process": front}
        assert service.figure("rewardloop_requests_total", **labels) >= 1
    scored = [each.count for each in status.traffic.requests if each.method == "RewardService/Score"]
    assert sum(scored) == service.figure("rewardloop_requests_total", method="RewardService/Score", code="OK")
    found = service.samples()
    assert {sample.labels["process"] for sample in found} == {"supervisor", "engine", "front-0", "front-1"}
    assert service.figure("rewardloop_batch_rows_count", process="engine") > 0
    assert {s.labels["process"] for s in found if s.name == "rewardloop_batch_rows_count"} == {"engine"}
    same = FrontedService.samples(alone)  # type: ignore[arg-type]  # it needs no more than the port
    assert {sample.name for sample in same} == {sample.name for sample in found}


async def test_flood_through_one_front_delays_nobody_at_the_other_beyond_two_runs(
    tmp_path: Path, redis_url: str
) -> None:
    """A run has one group and takes tens of milliseconds, and forty of them wait."""
    publish_sum_version(ModelStore(tmp_path / "models"), cost=1500)
    args = ("--streams", "1", "--token-budget", "8", "--cache-mib", "0")
    with serving_by_fronts(tmp_path / "models", redis_url, tmp_path / "log", *args) as service:
        async with service.channel_to("front-0") as one, service.channel_to("front-1") as other:
            flooded = reward_pb2_grpc.RewardServiceStub(one)
            beside = reward_pb2_grpc.RewardServiceStub(other)
            group = reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="alpha beta"), responses=["gamma delta"])
            ends: list[float] = []

            async def a() -> None:
                await flooded.Score(group, metadata=(("rewardloop-caller", "a"),))
                ends.append(time.monotonic())

            flood = [asyncio.create_task(a()) for _ in range(40)]
            while len(ends) < 3:  # noqa: ASYNC110 - it is about to happen
                await asyncio.sleep(0.005)
            began = time.monotonic()
            await beside.Score(group, metadata=(("rewardloop-caller", "b"),))
            ended = time.monotonic()
            await asyncio.gather(*flood)
            during = sum(began < end < ended for end in ends)
            assert len(ends) == 40
            assert during <= 3, "the run in flight, one more, and the one whose reply was under way"


async def test_quota_is_one_for_all_fronts(store: Path, redis_url: str, tmp_path: Path) -> None:
    callers = CallersFile(tmp_path)
    token = callers.add("shop", "score")
    callers.bound("shop", requests_per_s=0.01, burst_s=1000)  # ten, and none for a long time
    args = ("--callers", str(callers.path))
    service = FrontedService(store, redis_url, tmp_path / "log", args)
    service.start()
    try:
        service.wait_until_serving()
        await until_true(lambda: any("fronts" in each for each in service.events()))  # all of them listen
        codes = []
        async with AsyncExitStack() as stack:
            for i, stub in enumerate((await stubs(service.address, stack, 16)) * 2):
                try:
                    await stub.Score(a_group(random.Random(i)), metadata=(("authorization", f"Bearer {token}"),))
                    codes.append("OK")
                except grpc.aio.AioRpcError as error:
                    codes.append(error.code().name)
        assert codes == ["OK"] * 10 + ["RESOURCE_EXHAUSTED"] * 22
        fronts = {s.labels["process"] for s in service.samples() if s.name == "rewardloop_quota_refusals_total"}
        assert fronts == {"front-0", "front-1"}
    finally:
        service.kill()


@pytest.mark.parametrize(
    ("args", "status", "why"),
    [
        (("--listen", "unix:/tmp/never.sock"), 2, "cannot share a Unix socket"),
        (("--spool", "spool"), 2, "a spool belongs to one process"),
        (("--callers", "missing.toml"), 1, "missing.toml"),
        (("--device", "cuda"), 1, "device is cuda"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    args: tuple[str, ...], status: int, why: str, store: Path, redis_url: str, tmp_path: Path
) -> None:
    service = FrontedService(store, redis_url, tmp_path / "log", args)
    ended = subprocess.run(service.argv(), capture_output=True, text=True, timeout=60)
    assert (ended.returncode, why in ended.stderr) == (status, True), ended.stderr[-2000:]


def test_port_that_another_service_has_is_refused(service: FrontedService, store: Path, redis_url: str) -> None:
    """Also by a service that would share it with fronts of its own."""
    for fronts in ("0", "1"):
        argv = [sys.executable, "-m", "rewardloop_server.app", "--store", str(store), "--redis-url", redis_url]
        argv += ["--listen", service.address, "--metrics-port", "0", "--front-processes", fronts]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 1
        assert f"cannot listen on {service.address}" in ended.stderr
