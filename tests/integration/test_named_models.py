"""Several reward models and mixtures of them in one process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from redis.asyncio import Redis
from support.graph_runners import graph_runner
from support.named_models import NamedModels, group, named_models
from support.reward_graphs import expected_logit, publish_sum_version
from support.statuses import failure, fields_of, reason_of

from rewardloop.formats import keys
from rewardloop.formats.store import Calibration, ModelStore
from rewardloop.v1 import model_pb2

FACTORS = {"reward": 1.0, "helpful": 2.0, "harmless": -1.0}
MIXTURES = """
version = "7"
[mixtures.product.parts]
helpful = { weight = 0.5 }
harmless = { weight = 0.25, floor = -30.0, penalty = 4.0 }
brief = { rule = "length", most = 1, weight = 3.0 }
[mixtures.graded.parts]
right = { rule = "reference", compare = "exact", weight = 1.0 }
[mixtures.unloved.parts]
helpful = { weight = 1.0 }
love = { weight = 1.0 }
"""


def publish(store: ModelStore, *names: str) -> None:
    for name in names:
        publish_sum_version(store, factor=FACTORS[name], model=name)


@pytest.fixture
async def served(redis: Redis, tmp_path: Path) -> NamedModels:
    publish(ModelStore(tmp_path / "models"), "reward", "helpful", "harmless")
    async with named_models(redis, tmp_path, ("helpful", "harmless", "love"), MIXTURES) as served:
        await served.until_active("reward", "helpful", "harmless")
        yield served


async def test_a_name_chooses_the_model_and_no_name_is_reward(served: NamedModels) -> None:
    for name, factor in (("", 1.0), *FACTORS.items()):
        reply = await served.score(name)
        assert [s.score for s in reply.scores] == [expected_logit("alpha", r, factor) for r in ("beta", "gamma")]
        assert reply.model_version.version == "1"
        assert not reply.parts
        assert not reply.scores[0].HasField("meets_floors")


async def test_a_mixture_says_each_part_and_the_total(served: NamedModels) -> None:
    reply = await served.score("product", ("beta", "theta theta theta"))
    helpful, harmless, brief = reply.parts
    assert [part.name for part in reply.parts] == ["helpful", "harmless", "brief"]
    assert [part.model for part in reply.parts] == ["helpful", "harmless", ""]
    assert [part.HasField("model_version") for part in reply.parts] == [True, True, False]
    assert [part.HasField("floor") for part in reply.parts] == [False, True, False]
    responses = ("beta", "theta theta theta")
    assert list(helpful.values) == [expected_logit("alpha", r, 2.0) for r in responses]
    assert list(harmless.values) == [expected_logit("alpha", r, -1.0) for r in responses]
    assert list(brief.values) == [0.0, -1.0]
    for i, score in enumerate(reply.scores):
        short = max(0.0, -30.0 - harmless.values[i])
        expected = 0.5 * helpful.values[i] + 0.25 * harmless.values[i] + 3.0 * brief.values[i] - 4.0 * short
        assert score.score == pytest.approx(expected)
        assert score.meets_floors == (short == 0)
        slope = 0.25 + (4.0 if short else 0.0)
        spread = [abs(part.values[i]) / 3 for part in (helpful, harmless)]  # heads are 2/3 and 4/3 of their mean
        assert score.uncertainty == pytest.approx(((0.5 * spread[0]) ** 2 + (slope * spread[1]) ** 2) ** 0.5)
    assert [score.meets_floors for score in reply.scores] == [True, False]
    assert reply.model_version.version == "7"
    assert served.figure("mixture_responses_total", mixture="product") == 2
    assert served.figure("below_floor_total", mixture="product", part="harmless") == 1


async def test_batches_and_streams_take_names_and_a_wrong_one_fails_alone(served: NamedModels) -> None:
    groups = [group(), group("product"), group("no-such"), group("harmless")]
    items = (await served.batch(*groups)).items
    assert [item.WhichOneof("outcome") for item in items] == ["result", "result", "error", "result"]
    assert [len(item.result.parts) for item in items] == [0, 3, 0, 0]
    replies = await served.stream(*groups)
    assert [replies[str(i)].WhichOneof("outcome") for i in range(4)] == ["result", "result", "error", "result"]


async def test_a_rule_compares_with_the_requests_reference(served: NamedModels) -> None:
    reply = await served.score("graded", reference=" Beta ")
    assert [s.score for s in reply.scores] == [1.0, 0.0]
    assert fields_of(await failure(served.score("graded"))) == ["reference"]


@pytest.mark.parametrize(
    "name", ["no-such", "policy", "../reward", "reward/1", "", " ", "x" * 100_000, "Reward", "\u0440eward"]
)
async def test_a_name_that_is_not_served_is_refused_and_leaves_no_trace(served: NamedModels, name: str) -> None:
    if not name:
        assert (await served.score("")).scores
        return
    before = len(list(served.metrics.registry.collect()))
    error = await failure(served.score(name))
    assert (error.code(), fields_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, ["model"])
    assert fields_of(await failure(served.promote(name, "1"))) == ["model"]
    assert fields_of(await failure(served.versions(name))) == ["model"]
    assert len(list(served.metrics.registry.collect())) == before
    assert set(await served.pointer._redis.hkeys(keys.ACTIVE)) == {b"reward", b"helpful", b"harmless"}


async def test_a_part_without_a_version_fails_its_mixture_with_a_reason_and_no_other(served: NamedModels) -> None:
    for name in ("love", "unloved"):
        error = await failure(served.score(name))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "NO_MODEL")
        assert "love" in error.details()
    assert (await served.score("product")).scores
    publish_sum_version(served.store, model="love")
    await served.until_active("love")
    assert (await served.score("unloved")).scores


async def test_a_mixture_pins_no_version_and_a_model_does(served: NamedModels) -> None:
    error = await failure(served.score("product", pin_version="1", min_version=1))
    assert fields_of(error) == ["pin_version", "min_version"]
    assert (await served.score("helpful", pin_version="1")).model_version.version == "1"
    assert reason_of(await failure(served.score("helpful", pin_version="2"))) == "UNKNOWN_VERSION"


async def test_each_model_has_versions_canary_and_rollback_of_its_own(served: NamedModels) -> None:
    publish_sum_version(served.store, factor=8.0, model="helpful")
    reply = await served.versions("helpful")
    assert [info.version.version for info in reply.versions] == ["2", "1"]
    assert list(reply.models) == ["reward", "helpful", "harmless", "love"]
    digest = (await served.score("product")).model_version.digest
    await served.promote("helpful", "2")
    assert (await served.score("helpful")).scores[0].score == expected_logit("alpha", "beta", 8.0)
    assert (await served.score()).model_version.version == "1"
    assert (await served.score("product")).parts[0].model_version.version == "2"
    assert (await served.score("product")).model_version.digest != digest
    await served.models.Rollback(model_pb2.RollbackRequest(model="helpful"), timeout=20)
    assert (await served.score("product")).model_version.digest == digest
    await served.models.SetCanary(model_pb2.SetCanaryRequest(model="helpful", version="2", share=0.999999), timeout=20)
    assert (await served.score("helpful")).model_version.version == "2"
    await served.models.SetCanary(model_pb2.SetCanaryRequest(model="helpful"), timeout=20)
    await served.models.SetShadow(model_pb2.SetShadowRequest(model="helpful", version="2", share=1.0), timeout=20)
    await served.score("helpful")
    async with asyncio.timeout(20):
        while not served.figure("shadow_score_difference_count", model="helpful"):  # noqa: ASYNC110 - a metric
            await asyncio.sleep(0.02)
    assert not served.figure("shadow_score_difference_count", model="reward")
    for unknown in ("policy", "no-such"):
        call = served.models.SetShadow(model_pb2.SetShadowRequest(model=unknown, version="1", share=1.0), timeout=20)
        assert fields_of(await failure(call)) == ["model"]


async def test_a_corrupt_version_or_pointer_of_one_model_stops_no_other(redis: Redis, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    publish(store, "reward", "helpful", "harmless")
    graph = tmp_path / "models" / "helpful" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-7] + b"garbage")
    await redis.hset(keys.ACTIVE, "harmless", "{no pointer")
    async with named_models(redis, tmp_path, ("helpful", "harmless"), MIXTURES.replace("love", "reward")) as served:
        await served.until_active("reward")
        assert (await served.score()).scores
        for name in ("helpful", "harmless", "product"):
            assert reason_of(await failure(served.score(name))) == "NO_MODEL"
        await redis.hset(keys.ACTIVE, "harmless", json.dumps({"version": "1", "previous": []}))
        await served.until_active("harmless")
        publish_sum_version(store, factor=3.0, model="helpful")
        await served.promote("helpful", "2")
        assert (await served.score("product")).scores
        assert served.figure("versions_refused_total", model="helpful", reason="CORRUPT_VERSION")


async def test_a_part_that_gives_no_number_fails_the_group_alone(redis: Redis, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    publish(store, "reward", "helpful")
    publish_sum_version(store, model="harmless", nan_on="eta")
    huge = Calibration(scale=1e300, offset=1e300)
    publish_sum_version(store, model="love", calibration=huge)
    text = MIXTURES + "\n[mixtures.huge.parts]\nlove = { weight = 1e6 }\nhelpful = { floor = 1e6, penalty = 1e6 }\n"
    async with named_models(redis, tmp_path, ("helpful", "harmless", "love"), text) as served:
        await served.until_active("reward", "helpful", "harmless", "love")
        items = (await served.batch(group("product"), group("product", ("eta",)), group("huge"), group())).items
        assert [item.WhichOneof("outcome") for item in items] == ["result", "error", "error", "result"]
        assert reason_of(await failure(served.score("huge"))) == "INTERNAL"


async def test_equal_versions_of_two_models_share_one_graph(redis: Redis, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    for name in ("reward", "helpful", "harmless"):
        publish_sum_version(store, model=name)  # as exports of one base are
    async with named_models(redis, tmp_path, ("helpful", "harmless")) as served:
        await served.until_active("reward", "helpful", "harmless")
        models = []
        for host in served.scoring.hosts.values():
            with host.lease() as model:
                models.append(model)
        assert len({id(graph_runner(model)._sessions) for model in models}) == 1
        publish_sum_version(store, factor=2.0, model="reward")
        await served.promote("reward", "2")
        assert (await served.score("helpful")).scores[0].score == expected_logit("alpha", "beta")
        assert served.figure("cost_model_seconds", model="helpful", version="1", term="fixed")
        assert served.figure("cost_model_seconds", model="reward", version="1", term="fixed") is None


async def test_a_group_is_admitted_with_all_of_its_parts(redis: Redis, tmp_path: Path) -> None:
    """What one part would be admitted with, three are not: a mixture takes its caller's share three times."""
    text = 'version = "1"\n[mixtures.three.parts]\n' + "".join(
        f"{name} = {{ weight = 1.0 }}\n" for name in ("reward", "helpful", "harmless")
    )
    publish(ModelStore(tmp_path / "models"), "reward", "helpful", "harmless")
    async with named_models(redis, tmp_path, ("helpful", "harmless"), text, queue_tokens_production=400) as served:
        await served.until_active("reward", "helpful", "harmless")
        assert served.scoring.scorers.readers("three") == 3
        held = served.scoring.batcher.reserved("production", 200, None, "other")
        with held:
            long = " ".join(["beta"] * 50)  # some 60 tokens
            assert (await served.score("helpful", (long,))).scores
            assert reason_of(await failure(served.score("three", (long,)))) == "QUEUE_FULL"
        assert (await served.score("three", (long,))).scores
