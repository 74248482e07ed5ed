"""Choosing among sampled candidates: a real reward model and batcher, real Redis, a worker over real gRPC."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from support.grpc_servers import Serve, serving
from support.reward_graphs import expected_logit, publish_sum_version
from support.statuses import failure, fields_of, reason_of

from rewardloop.formats.store import Calibration, ModelStore
from rewardloop.v1 import common_pb2, policy_pb2, policy_pb2_grpc, reward_pb2, reward_pb2_grpc
from rewardloop_server.calls.errors import QueueFull
from rewardloop_server.calls.validate import Limits
from rewardloop_server.device.choose import Device
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.generate.best_of import BestOf
from rewardloop_server.generate.relay import PolicyRelay
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.mixing.scorers import Scorers
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.batching import Version
from rewardloop_server.scoring.cache import ScoreCache
from rewardloop_server.scoring.score_group import GroupScorer
from rewardloop_server.scoring.servicer import BulkLimits, RewardServicer
from rewardloop_server.scoring.shadow import ShadowScorer
from rewardloop_server.scoring.tokenize import TokenizePool
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.host import VersionHost
from rewardloop_server.versions.worker_link import PolicyWorkerLink

SAID = ["beta", "theta", "alpha", "zeta", "gamma", ""]
CALIBRATION = Calibration(scale=-0.5, offset=3.0)  # the best score is the lowest logit


class Worker(policy_pb2_grpc.PolicyServiceServicer):
    """Says the same to every prompt, and logs it as the policy worker does."""

    def __init__(self, log: GenerationLog) -> None:
        self.log = log
        self.asked: list[policy_pb2.GenerateRequest] = []

    async def Generate(self, request: policy_pb2.GenerateRequest, context: Any) -> policy_pb2.GenerateResponse:
        self.asked.append(request)
        if request.prompt.text == "busy":
            raise QueueFull("the policy's queue is full", retry_after_ms=330)
        candidates = [
            policy_pb2.Candidate(text=SAID[i % len(SAID)], log_probability=-i) for i in range(request.candidates)
        ]
        version = common_pb2.ModelVersion(version="4")
        generation = policy_pb2.Generation(
            generation_id=f"g{len(self.asked)}",
            prompt=request.prompt,
            candidates=candidates,
            policy_version=version,
            seed=request.seed,
            show_probabilities=[1.0] * len(candidates),
        )
        if request.prompt.text != "unlogged":
            await self.log.put(generation)
        return policy_pb2.GenerateResponse(
            generation_id=generation.generation_id, candidates=candidates, policy_version=version
        )


class Front:
    """The serving process as its callers see it, and what is behind. The engine runs from `start_engine` on."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        worker: Worker,
        log: GenerationLog,
        host: VersionHost[Version],
        batcher: Batcher,
        metrics: ServerMetrics,
    ) -> None:
        self._policy: Any = policy_pb2_grpc.PolicyServiceStub(channel)
        self._reward: Any = reward_pb2_grpc.RewardServiceStub(channel)
        self._batcher, self._metrics = batcher, metrics
        self.worker, self.log, self.host = worker, log, host
        self.engine: asyncio.Task[None] | None = None

    async def generate(self, text: str = "alpha", caller: str = "", **how: Any) -> policy_pb2.GenerateResponse:
        request = policy_pb2.GenerateRequest(prompt=common_pb2.Prompt(text=text), **how)
        reply: policy_pb2.GenerateResponse = await self._policy.Generate(request, timeout=20, metadata=named(caller))
        return reply

    async def score(self, text: str, responses: list[str], caller: str = "") -> reward_pb2.ScoreResponse:
        request = reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text=text), responses=responses)
        reply: reward_pb2.ScoreResponse = await self._reward.Score(request, timeout=20, metadata=named(caller))
        return reply

    async def logged(self, reply: policy_pb2.GenerateResponse) -> policy_pb2.Generation:
        return (await self.log.get([reply.generation_id]))[reply.generation_id]

    async def activate(self) -> None:
        async with self.host.changing():
            await self.host.warm("1")
            self.host.activate("1")

    def start_engine(self) -> None:
        self.engine = asyncio.create_task(self._batcher.run())

    def figure(self, name: str, **labels: str) -> float:
        return self._metrics.registry.get_sample_value(f"rewardloop_{name}", labels) or 0.0

    async def until(self, name: str, value: float, **labels: str) -> None:
        """Wait for a metric to get there."""
        async with asyncio.timeout(20):
            while self.figure(name, **labels) < value:  # noqa: ASYNC110 - a metric cannot be awaited
                await asyncio.sleep(0.01)


def named(caller: str) -> tuple[tuple[str, str], ...]:
    return (("rewardloop-caller", caller),) if caller else ()


@pytest.fixture
async def front(serve: Serve, redis: Redis, tmp_path: Path, metrics: ServerMetrics) -> AsyncIterator[Front]:
    store = ModelStore(tmp_path / "models")
    publish_sum_version(store, calibration=CALIBRATION, cost=50, arrivals=(time.time() - 5, time.time() - 3))
    pool = SessionPool(store, Device("cpu", 1, spin=False), metrics)
    host: VersionHost[Version] = VersionHost("reward", store, pool.load, lambda *_: None)
    batcher = Batcher(
        token_budget=1,  # so that each run has one row, and rows are scored in the order in which callers take turns
        lanes={lane: LaneLimits(100_000) for lane in ("production", "trainer", "shadow")},
        trainer_max_wait_s=1.0,
        metrics=metrics,
    )
    tokenizers, log = TokenizePool(1), GenerationLog(redis, ttl_s=60)
    worker, address = Worker(log), f"unix:{tmp_path}/worker.sock"
    link = PolicyWorkerLink(address)
    cache = ScoreCache(max_mib=1, lanes=["production"], metrics=metrics)
    shadow = ShadowScorer(host, tokenizers, batcher, metrics)
    scorer = GroupScorer(host, tokenizers, batcher, cache, Freshness(redis, metrics), shadow, metrics)
    scorers = Scorers({"reward": scorer}, {})
    relay = PolicyRelay(link, BestOf(scorers, log))
    rewards = RewardServicer(scorers, batcher, Limits(), BulkLimits(8, 8, 1000), metrics)
    behind = (policy_pb2_grpc.add_PolicyServiceServicer_to_server, worker)
    async with (
        serving(ServerMetrics(), behind, address=address),
        serve(
            (policy_pb2_grpc.add_PolicyServiceServicer_to_server, relay),
            (reward_pb2_grpc.add_RewardServiceServicer_to_server, rewards),
        ) as channel,
    ):
        front = Front(channel, worker, log, host, batcher, metrics)
        yield front
    await link.close()
    if front.engine is not None:
        front.engine.cancel()
        await asyncio.gather(front.engine, return_exceptions=True)
    tokenizers.close()


@pytest.fixture
async def warm(front: Front) -> Front:
    front.start_engine()
    await front.activate()
    return front


async def test_the_best_are_shown_with_their_scores_and_so_they_are_logged(warm: Front) -> None:
    reply = await warm.generate(candidates=2, best_of=5)
    assert [c.text for c in reply.candidates] == ["alpha", "beta"]
    for candidate in reply.candidates:
        logit = expected_logit("alpha", candidate.text)
        assert candidate.score == pytest.approx(3.0 - 0.5 * logit)
        # Heads say 2/3 and 4/3 of the mean.
        assert candidate.uncertainty == pytest.approx(0.5 * logit / 3)
    assert [c.log_probability for c in reply.candidates] == [-2, 0]
    chosen = reply.chosen
    assert (chosen.selection, chosen.sampled) == (policy_pb2.SELECTION_BEST, 5)
    assert (chosen.set_probability, chosen.random_share, chosen.is_random) == (1.0, 0.0, False)
    assert chosen.reward_version.version == "1"
    logged = await warm.logged(reply)
    assert logged.candidates == reply.candidates
    assert list(logged.show_probabilities) == [1.0, 1.0]
    assert logged.chosen == chosen
    assert logged.policy_version.version == "4"
    (asked,) = warm.worker.asked
    assert (asked.candidates, asked.best_of, asked.HasField("seed")) == (5, 0, True)


async def test_an_empty_answer_is_scored_like_any_other(warm: Front) -> None:
    reply = await warm.generate(best_of=6)
    assert [c.text for c in reply.candidates] == [""]
    assert reply.candidates[0].score == pytest.approx(3.0 - 0.5 * expected_logit("alpha", ""))


async def test_the_informative_pair_is_the_one_that_heads_differ_on_most(warm: Front) -> None:
    how: Any = {"candidates": 2, "best_of": 4, "selection": policy_pb2.SELECTION_INFORMATIVE}
    reply = await warm.generate(random_share=0.0, **how)
    # One head's differences are twice the other's. Of 1, 2, 4 and more, those of 2 leave them furthest apart.
    assert [c.text for c in reply.candidates] == ["theta", "zeta"]
    differences = [2.0, 4.0]
    p = [1 / (1 + math.exp(-d)) for d in differences]
    information = entropy(sum(p) / 2) - sum(map(entropy, p)) / 2
    assert reply.chosen.expected_information == pytest.approx(information, abs=1e-6)
    assert reply.chosen.set_probability == 1.0
    replies = [await warm.generate(random_share=0.6, seed=seed, **how) for seed in range(40)]
    for each in replies:
        is_best = [c.text for c in each.candidates] == ["theta", "zeta"]
        assert each.chosen.set_probability == pytest.approx(0.1 + 0.4 * is_best)
        assert each.chosen.is_random or is_best
        logged = await warm.logged(each)
        assert logged.chosen == each.chosen
        texts = [c.text for c in each.candidates]
        expected = [0.1 * 3 + 0.4 * (text in ("theta", "zeta")) for text in texts]
        assert list(logged.show_probabilities) == pytest.approx(expected)
    assert 10 < sum(each.chosen.is_random for each in replies) < 38
    again = await warm.generate(random_share=0.6, seed=3, **how)
    assert again.candidates == replies[3].candidates
    assert (await warm.generate(**how)).chosen.random_share == pytest.approx(0.1)


async def test_uniform_sets_say_so(warm: Front) -> None:
    reply = await warm.generate(candidates=3, best_of=5, selection=policy_pb2.SELECTION_UNIFORM)
    assert reply.chosen.set_probability == pytest.approx(0.1)
    assert list((await warm.logged(reply)).show_probabilities) == pytest.approx([0.6] * 3)
    assert all(c.HasField("score") for c in reply.candidates)


async def test_what_cannot_be_chosen_is_refused_before_anything_is_sampled(warm: Front) -> None:
    informative = policy_pb2.SELECTION_INFORMATIVE
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"candidates": 3, "best_of": 2}, ["best_of"]),
        ({"best_of": 65}, ["best_of"]),
        ({"best_of": -1}, ["best_of"]),
        ({"best_of": 4, "candidates": -3}, ["candidates"]),
        ({"best_of": 4, "candidates": -3, "selection": policy_pb2.SELECTION_UNIFORM}, ["candidates"]),
        ({"best_of": 4, "selection": informative}, ["candidates"]),
        ({"best_of": 4, "selection": 9}, ["selection"]),
        ({"best_of": 4, "random_share": 0.5}, ["random_share"]),
        ({"best_of": 4, "candidates": 2, "selection": informative, "random_share": 1.5}, ["random_share"]),
        ({"best_of": 4, "candidates": 2, "selection": informative, "random_share": math.nan}, ["random_share"]),
    ]
    for how, fields in cases:
        error = await failure(warm.generate(**how))
        assert (error.code(), fields_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, fields), how
    assert warm.worker.asked == []


async def test_what_the_worker_refuses_and_what_is_missing_come_back_typed(front: Front) -> None:
    front.start_engine()
    error = await failure(front.generate(best_of=4))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "NO_MODEL")
    error = await failure(front.generate("busy", best_of=4))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    # Without a choice to make, no reward model is needed.
    assert len((await front.generate(candidates=3)).candidates) == 3


async def test_an_answer_that_is_not_in_the_log_is_not_given(warm: Front) -> None:
    error = await failure(warm.generate("unlogged", best_of=4))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")


async def test_candidates_take_turns_with_whatever_else_their_caller_sends(front: Front) -> None:
    await front.activate()
    answered: list[str] = []

    async def note(name: str, answer: Awaitable[object]) -> None:
        await answer
        answered.append(name)

    calls = []
    for name, call in (
        ("busy's many", front.score("alpha", SAID[:5] * 50, "busy")),
        ("busy's candidates", front.generate("gamma", "busy", best_of=2)),
        ("quiet's", front.score("delta", SAID[:2], "quiet")),
    ):
        queued = front.figure("queue_tokens", lane="production")
        calls.append(asyncio.create_task(note(name, call)))
        await front.until("queue_tokens", queued + 1, lane="production")
    front.start_engine()
    await asyncio.gather(*calls)
    assert answered == ["quiet's", "busy's many", "busy's candidates"]


async def test_a_candidate_that_was_scored_before_is_not_run_again(warm: Front) -> None:
    await warm.score("alpha", SAID[:3])
    assert warm.figure("batch_rows_count") == 3
    reply = await warm.generate("alpha", best_of=4)
    assert reply.candidates[0].score == pytest.approx(3.0 - 0.5 * expected_logit("alpha", "alpha"))
    assert warm.figure("cache_lookups_total", lane="production", outcome="hit") == 3
    assert warm.figure("batch_rows_count") == 4


async def test_scoring_candidates_is_measured_as_scoring_is(warm: Front) -> None:
    await warm.generate(best_of=4)
    await warm.until("feedback_to_live_seconds_count", 2)
    assert 6 < warm.figure("feedback_to_live_seconds_sum") < 100
    for stage in ("tokenize", "queue", "run", "total"):
        assert warm.figure("stage_seconds_count", stage=stage, lane="production") == 1


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)
