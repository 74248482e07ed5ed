"""A reward version that a server elsewhere runs: it is proven, run, waited for and swapped, or refused with figures."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from support.named_models import NamedModels, group, named_models
from support.pooled_loading import load, loading, refused
from support.pooling_server import PoolingServer, pooling_server, publish_sum_pool, sum_of
from support.processes import free_port
from support.reward_graphs import VOCABULARY, expected_logit, publish_sum_version
from support.statuses import failure, reason_of

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.storing.pooling_file import POOLING
from rewardloop.formats.text import Turn
from rewardloop.v1 import model_pb2, reward_pb2
from rewardloop_server.calls.errors import EngineStuck, NotLoadable
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.pooling import servers
from rewardloop_server.scoring.engine import EngineAway, RewardModel

RESPONSES = ("beta", "gamma theta", "delta", "eta eta eta eta eta eta")
RIGHT, OTHER = sum_of(0.1), sum_of(0.2)


@asynccontextmanager
async def served(redis: Redis, directory: Path, *urls: str, **settings: Any) -> AsyncIterator[NamedModels]:
    async with named_models(redis, directory, (), pooling_urls=list(urls), **settings) as models:
        yield models


def published(directory: Path, name: str = "judge", factor: float = 0.1) -> Manifest:
    return publish_sum_pool(ModelStore(directory / "models"), name, factor)


def expected(factor: float = 0.1) -> Any:
    """The logits of `RESPONSES` to "alpha"."""
    return pytest.approx([expected_logit("alpha", response, factor) / 1.5 for response in RESPONSES], rel=1e-6)


def rows_of(model: RewardModel, responses: tuple[str, ...] = RESPONSES) -> list[Any]:
    return [model.encoder.pair((Turn("user", "alpha"),), response) for response in responses]


def logits(reply: reward_pb2.ScoreResponse) -> list[float]:
    return [score.logit for score in reply.scores]


async def until(holds: Callable[[], object], patience_s: float = 60.0) -> None:
    async with asyncio.timeout(patience_s):
        while not holds():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)


def test_a_server_of_sglang_is_asked_in_its_own_form(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    with pooling_server({"judge": RIGHT}) as server, loading(server.url, api="sglang") as pooled:
        model = load(pooled, tmp_path, manifest)
        assert list(model.run(rows_of(model))[0][:, 0]) == expected()
    assert {path for path, _ in server.history} == {"/classify"}


def test_a_server_of_sglang_has_to_take_more_tokens_than_the_longest_text_has(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    with pooling_server({"judge": RIGHT}, max_model_len=65) as server, loading(server.url, api="sglang") as pooled:
        load(pooled, tmp_path, manifest)
    with pooling_server({"judge": RIGHT}, max_model_len=64) as server:
        refused(server, tmp_path, manifest, r"at most 63 tokens, .* up to 64", "sglang")


def test_runs_are_timed_on_rows_whose_beginnings_no_cache_of_the_server_knows(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    with pooling_server({"judge": RIGHT}) as server, loading(server.url) as pooled:
        load(pooled, tmp_path, manifest)
    timed = [tuple(row[:12]) for _, body in server.history for row in body["input"] if len(row) >= 16]
    assert len(timed) > 8
    assert len(set(timed)) == len(timed)


def test_the_key_is_shown_to_the_server(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    with pooling_server({"judge": RIGHT}) as server, loading(server.url, key="secret") as pooled:
        load(pooled, tmp_path, manifest)
    assert server.keys == {"Bearer secret"}


def test_a_server_that_does_not_prove_what_it_serves_is_refused_with_the_figures(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"models": {"judge": OTHER}},
            r"by up to \d\.\d+, above 0\.001, the tolerance of float32: it serves other",
        ),
        ({"models": {"judge": RIGHT}, "activates": True}, r"probabilities \(sigmoid\) instead of raw logits"),
        ({"models": {"referee": RIGHT}}, r"serves referee, and not 'judge'"),
        ({"models": {"judge": RIGHT}, "max_model_len": 60}, r"at most 60 tokens, .* up to 64"),
        ({"models": {"judge": RIGHT}, "refuses": lambda rows: (400, "no such task")}, r"status 400"),
    ]
    for about, reason in cases:
        with pooling_server(**about) as server:
            refused(server, tmp_path, manifest, reason)


def test_a_version_without_a_server_or_whose_server_is_away_is_not_loaded(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    with loading() as pooled, pytest.raises(NotLoadable, match="no --pooling-urls says by which server"):
        load(pooled, tmp_path, manifest)
    with loading(f"http://127.0.0.1:{free_port()}") as pooled, pytest.raises(EngineStuck, match="is not served"):
        load(pooled, tmp_path, manifest)


def test_a_server_that_knows_graphs_alone_refuses_the_version(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    pool = SessionPool(ModelStore(tmp_path / "models"), Device("cpu", 1, spin=False), ServerMetrics())
    with pytest.raises(NotLoadable, match="reward 1 does not load"):
        pool.load(manifest, ModelStore(tmp_path / "models").fetch("reward", "1"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.update(form=2), "form is 2"),
        (lambda file: file.update(more=1), "keys"),
        (lambda file: file.update(probes=[]), "lacks"),
        (lambda file: file["probes"][0]["ids"].append(5), "other token ids"),
        (lambda file: file.update(weights=[1.0, 1.0]), "2 weights for 1 outputs"),
    ],
)
def test_a_file_that_proves_nothing_is_refused(change: Callable[[Any], object], reason: str, tmp_path: Path) -> None:
    first = published(tmp_path)
    store = ModelStore(tmp_path / "models")
    directory = store.fetch("reward", first.version)

    def write(target: Path) -> None:
        for name in first.files:
            (target / name).write_bytes((directory / name).read_bytes())
        file = json.loads((target / POOLING).read_text())
        change(file)
        (target / POOLING).write_text(json.dumps(file))

    manifest = store.publish(first, write)
    with pooling_server({"judge": RIGHT}) as server:
        refused(server, tmp_path, manifest, reason)
    assert server.history == [], "nothing was asked of the server"


async def test_a_server_that_dies_and_returns_is_waited_for_and_proves_anew(redis: Redis, tmp_path: Path) -> None:
    published(tmp_path)
    port = free_port()
    right = expected()
    with pooling_server({"judge": RIGHT}, port) as server:
        url = server.url
    async with served(redis, tmp_path, url) as models:
        with pooling_server({"judge": RIGHT}, port):
            await models.until_active("reward")
            assert logits(await models.score("", RESPONSES)) == right
        error = await failure(models.score("", RESPONSES))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_STUCK")
        await until(lambda: models.scoring.is_stuck)
        error = await failure(models.score("", RESPONSES))
        assert reason_of(error) == "ENGINE_STUCK"
        with pooling_server({"judge": OTHER}, port) as wrong:
            await until(lambda: len([path for path, _ in wrong.history if path == "/pooling"]) >= 2)
            assert models.scoring.is_stuck, "other weights do not serve"
        with pooling_server({"judge": RIGHT}, port):
            await until(lambda: not models.scoring.is_stuck)
            assert logits(await models.score("", RESPONSES)) == right
        assert not models.figure("failed_runs_total", outcome="broken")


async def test_a_server_that_is_started_again_with_other_weights_answers_no_request(
    redis: Redis, tmp_path: Path
) -> None:
    published(tmp_path)
    port = free_port()
    with ExitStack() as running:
        first = running.enter_context(pooling_server({"judge": RIGHT}, port))
        async with served(redis, tmp_path, first.url) as models:
            await models.until_active("reward")
            await until(lambda: first.connections)
            assert logits(await models.score("", RESPONSES)) == expected()
            running.close()
            running.enter_context(pooling_server({"judge": OTHER}, port))
            await asyncio.sleep(0.2)  # a process takes longer to start
            error = await failure(models.score("", RESPONSES))
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_STUCK")


async def test_a_server_of_sglang_that_names_other_weights_answers_no_request(redis: Redis, tmp_path: Path) -> None:
    published(tmp_path)
    with pooling_server({"judge": RIGHT}, weights="1") as server:
        async with served(redis, tmp_path, server.url, pooling_api="sglang") as models:
            await models.until_active("reward")
            assert logits(await models.score("", RESPONSES)) == expected()
            server.models, server.weights = {"judge": OTHER}, "2"
            error = await failure(models.score("", RESPONSES))
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_STUCK")


async def test_a_server_whose_weights_change_while_nobody_asks_it_is_found_out(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_LASTS_S", 0.5)
    published(tmp_path)
    with pooling_server({"judge": RIGHT}) as server:
        async with served(redis, tmp_path, server.url) as models:
            await models.until_active("reward")
            server.models = {"judge": OTHER}
            before = len(server.history)
            await until(lambda: len(server.history) > before + 2)
            error = await failure(models.score("", RESPONSES))
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_STUCK")


async def test_a_server_that_answers_nothing_any_more_is_away(redis: Redis, tmp_path: Path) -> None:
    published(tmp_path)
    with pooling_server({"judge": RIGHT}) as server:
        async with served(redis, tmp_path, server.url, run_limit_s=1.0) as models:
            await models.until_active("reward")
            server.until_open.clear()
            error = await failure(models.score("", RESPONSES))
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            await until(lambda: models.scoring.is_stuck)
            server.until_open.set()
            await until(lambda: not models.scoring.is_stuck)
            reply = await models.score("", RESPONSES)
            assert logits(reply) == expected()


async def test_of_two_servers_one_may_die_without_a_failed_request(redis: Redis, tmp_path: Path) -> None:
    published(tmp_path)
    right = expected()
    with pooling_server({"judge": RIGHT}) as staying, pooling_server({"judge": RIGHT}) as dying:
        async with served(redis, tmp_path, dying.url, staying.url) as models:
            await models.until_active("reward")
            dying.refuses = lambda rows: (503, "dead")
            for _ in range(4):
                assert logits(await models.score("", RESPONSES)) == right
            assert not models.scoring.is_stuck


async def test_of_two_servers_one_may_stop_answering_and_the_other_goes_on(redis: Redis, tmp_path: Path) -> None:
    published(tmp_path)
    right = expected()
    with pooling_server({"judge": RIGHT}) as hanging, pooling_server({"judge": RIGHT}) as staying:
        async with served(redis, tmp_path, hanging.url, staying.url, run_limit_s=1.0) as models:
            await models.until_active("reward")
            before = len(hanging.history)
            while len(hanging.history) == before:  # until it is asked, and not only proves
                await models.score("", RESPONSES)
            hanging.until_open.clear()
            for _ in range(4):
                assert logits(await models.score("", RESPONSES)) == right
            assert not models.scoring.is_stuck
            hanging.until_open.set()
        assert models.figure("run_seconds_total", device="elsewhere")
        assert not models.figure("run_seconds_total", device="cpu")


async def test_leaving_a_version_whose_server_is_away_ends_the_outage(redis: Redis, tmp_path: Path) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    published(tmp_path)
    with pooling_server({"judge": RIGHT}) as server:
        async with served(redis, tmp_path, server.url) as models:
            await models.until_active("reward")
            server.refuses = lambda rows: (503, "dead")
            error = await failure(models.score("", RESPONSES))
            assert reason_of(error) == "ENGINE_STUCK"
            assert models.figure("failed_runs_total", outcome="away")
            await until(lambda: models.scoring.is_stuck)
            await models.promote("reward", "1")
            await until(lambda: not models.scoring.is_stuck)
            reply = await models.score("", RESPONSES)
            assert reply.model_version.version == "1"


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_shadow_version_whose_server_is_away_turns_nobody_away(
    hangs: bool, redis: Redis, tmp_path: Path
) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    with pooling_server({"judge": RIGHT}) as server:
        async with served(redis, tmp_path, server.url, run_limit_s=1.0) as models:
            await models.until_active("reward")
            published(tmp_path)
            await models.models.SetShadow(
                model_pb2.SetShadowRequest(model="reward", version="2", share=1.0), timeout=20
            )
            await models.score("", RESPONSES)
            await until(lambda: models.figure("shadow_score_difference_count", model="reward"))
            if hangs:
                server.until_open.clear()
            else:
                server.refuses = lambda rows: (503, "dead")
            dropped = models.figure("shadow_dropped_total", model="reward") or 0
            for _ in range(20):
                reply = await models.score("", RESPONSES)
                assert reply.model_version.version == "1"
                assert not models.scoring.is_stuck
                await asyncio.sleep(0.1)
            assert (models.figure("shadow_dropped_total", model="reward") or 0) > dropped
            server.until_open.set()


@pytest.mark.parametrize("how", ["dies", "refuses", "hangs"])
async def test_the_live_version_answers_for_a_canary_whose_server_is_away(
    how: str, redis: Redis, tmp_path: Path
) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    port = free_port()
    with pooling_server({"judge": RIGHT}, port) as server:
        async with served(redis, tmp_path, server.url, run_limit_s=1.0) as models:
            await models.until_active("reward")
            published(tmp_path)
            await models.models.SetCanary(
                model_pb2.SetCanaryRequest(model="reward", version="2", share=0.999), timeout=20
            )
            assert (await models.score("", RESPONSES)).model_version.version == "2"
            if how == "hangs":
                server.until_open.clear()
            else:
                server.refuses = lambda rows: (503, "dead")
            if how == "dies":
                server.drop()
            for _ in range(10):
                assert (await models.score("", RESPONSES)).model_version.version == "1"
                assert not models.scoring.is_stuck
                await asyncio.sleep(0.05)
            assert (models.figure("canary_away_total", model="reward") or 0) >= 10
            error = await failure(models.score("", RESPONSES, pin_version="2"))
            assert reason_of(error) == "ENGINE_STUCK", "who pins the canary gets no other version"
            server.until_open.set()
            server.refuses = lambda rows: None
            async with asyncio.timeout(20):
                while (await models.score("", RESPONSES)).model_version.version != "2":  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.05)


async def test_a_model_whose_server_is_away_turns_nobody_away_from_another_one(redis: Redis, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    publish_sum_version(store)
    publish_sum_pool(store, model="helpful")
    with pooling_server({"judge": RIGHT}) as server:
        async with named_models(redis, tmp_path, ("helpful",), pooling_urls=[server.url]) as models:
            await models.until_active("reward", "helpful")
            server.refuses = lambda rows: (503, "dead")
            for _ in range(5):
                assert reason_of(await failure(models.score("helpful"))) == "ENGINE_STUCK"
                await models.score("")
            assert not models.scoring.is_stuck
            server.refuses = lambda rows: None
            async with asyncio.timeout(20):
                while not await answers(models, "helpful"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


async def answers(models: NamedModels, model: str) -> bool:
    try:
        await models.score(model)
    except grpc.aio.AioRpcError:
        return False
    return True


@pytest.mark.parametrize("status", [400, 413, 500, 502, 504])
async def test_a_row_that_the_server_cannot_answer_fails_alone_and_the_server_stays(
    status: int, redis: Redis, tmp_path: Path
) -> None:
    published(tmp_path)
    bad = VOCABULARY["zeta"]
    with pooling_server({"judge": RIGHT}) as server:
        async with served(redis, tmp_path, server.url) as models:
            await models.until_active("reward")
            server.refuses = lambda rows: (status, "Token id") if any(bad in row for row in rows) else None
            batch = await models.batch(*(group("", (text,)) for text in ("beta", "gamma", "zeta", "delta", "eta")))
            outcomes = [reason_of(item.error) if item.HasField("error") else "" for item in batch.items]
            assert outcomes == ["", "", "NOT_LOADABLE", "", ""]
            assert f"status {status}" in batch.items[2].error.message
            assert not models.scoring.is_stuck
            before = len(server.history)
            error = await failure(models.score("", ("zeta",)))
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_LOADABLE")
            assert len(server.history) - before <= 5, "a group has a bounded number of tries"
            assert logits(await models.score("", RESPONSES)) == expected()
            assert not models.figure("failed_runs_total", outcome="away")


async def test_runs_get_smaller_where_the_server_lacks_memory(redis: Redis, tmp_path: Path) -> None:
    published(tmp_path)
    with pooling_server({"judge": RIGHT}) as server:
        async with served(redis, tmp_path, server.url) as models:
            await models.until_active("reward")
            server.refuses = lambda rows: (500, "CUDA out of memory") if len(rows) > 2 else None
            reply = await models.score("", RESPONSES)
            assert logits(reply) == expected()
            assert models.figure("failed_runs_total", outcome="smaller")


async def test_versions_are_swapped_without_a_failed_request(redis: Redis, tmp_path: Path) -> None:
    published(tmp_path, "judge-1")
    right = {"1": expected()}
    with pooling_server({"judge-1": RIGHT, "judge-2": OTHER}) as server:
        async with served(redis, tmp_path, server.url) as models:
            await models.until_active("reward")
            published(tmp_path, "judge-2", 0.2)
            right["2"] = expected(0.2)
            seen, is_over = list[str](), False

            async def ask() -> None:
                while not is_over:
                    reply = await models.score("", RESPONSES)
                    seen.append(reply.model_version.version)
                    assert logits(reply) == right[seen[-1]]

            asking = [asyncio.create_task(ask()) for _ in range(3)]
            await until(lambda: len(seen) > 3)
            await models.promote("reward", "2")
            await until(lambda: seen[-6:] == ["2"] * 6)
            await models.promote("reward", "1")
            await until(lambda: seen[-6:] == ["1"] * 6)
            is_over = True
            await asyncio.gather(*asking)
            assert {body["model"] for _, body in server.history} == {"judge-1", "judge-2"}


def test_a_run_is_stopped_from_another_thread(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    with pooling_server({"judge": RIGHT}) as server, loading(server.url) as pooled:
        model = load(pooled, tmp_path, manifest)
        rows = rows_of(model)
        feeds, options = model.lay_out(rows, model.plan(rows)[0]), model.options()
        server.until_open.clear()
        before = len(server.history)
        stopping = threading.Thread(target=_stop_once_asked, args=(server, before, options))
        stopping.start()
        with pytest.raises(EngineAway, match="cancelled"):
            model.execute(feeds, options=options)
        stopping.join()
        server.until_open.set()
        assert model.works()
        model.close()
        assert not model.works()


def _stop_once_asked(server: PoolingServer, before: int, options: Any) -> None:
    while len(server.history) == before:
        time.sleep(0.01)
    options.terminate = True


def test_runs_hold_rows_of_any_length_up_to_their_limit(tmp_path: Path) -> None:
    manifest = published(tmp_path)
    with pooling_server({"judge": RIGHT}) as server, loading(server.url) as pooled:
        model = load(pooled, tmp_path, manifest)
        rows = rows_of(model, ("beta " * 30, "beta", "gamma " * 30, "gamma"))
        sizes = [len(row.ids) for row in rows]
        (whole,) = model.plan(rows)
        assert whole.rows == (0, 1, 2, 3)
        assert model.lay_out(rows, whole).tokens == sum(sizes), "nothing is padded"
        assert [run.rows for run in model.plan(rows, limit_tokens=sizes[0] + sizes[1])] == [(0, 1), (2, 3)]
        assert [run.rows for run in model.plan(rows, limit_tokens=1)] == [(0,), (1,), (2,), (3,)]
        assert [run.rows for run in model.plan(rows, limit_s=0.0)] == [(0,), (1,), (2,), (3,)]
