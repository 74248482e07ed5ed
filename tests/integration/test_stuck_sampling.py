"""A policy whose step does not end, and a policy worker that says nothing any more."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.policy_workers import Worker
from support.processes import serving
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import PolicyUnavailable as Unavailable
from rewardloop_client import RewardloopClient
from rewardloop_policy.policy_text import Answer
from rewardloop_policy.sample_batcher import SampleBatcher
from rewardloop_policy.sample_thread import Room
from rewardloop_policy.speech import Speech
from rewardloop_sampling.sampling import SampleRequest, Task
from rewardloop_server.calls.errors import InternalError, NotLoadable, PolicyUnavailable
from rewardloop_server.guard.watch import LostThread, RunBounds, Watch, Work
from rewardloop_server.observe.metrics import ServerMetrics

SERVICE = "rewardloop.v1.PolicyService"
BOUNDS = RunBounds(least_s=0.6, grace_s=0.6)


class SlowBatch:
    """Its steps take as long as the prompts say, in tenths of a second, and the reading of prompts as the seeds say."""

    can_join = True

    def __init__(self) -> None:
        self._steps: dict[Task, int] = {}

    @property
    def rows(self) -> int:
        return len(self._steps)

    def join(self, tasks: Sequence[Task]) -> None:
        time.sleep(sum(task.request.seed for task in tasks) / 10)
        self._steps |= {task: task.request.max_new_tokens for task in tasks}

    def step(self) -> list[Task]:
        for task in self._steps:
            time.sleep(sum(task.request.prompt) / 10)
            self._steps[task] -= 1
        done = [task for task, left in self._steps.items() if not left or task.is_abandoned()]
        self._steps = {task: left for task, left in self._steps.items() if task not in done}
        return done


class SlowPolicy:
    manifest = SimpleNamespace(version="1")
    token_s = 1e-4

    def batch(self) -> SlowBatch:
        return SlowBatch()

    def task(self, request: SampleRequest, speech: Speech, is_abandoned: Callable[[], bool]) -> Task:
        return Task(request, is_abandoned)

    def answers(self, task: Task, speech: Speech) -> list[Answer]:
        return [Answer("yes", -1.0, 1, "stop")]


def ask(
    batcher: SampleBatcher, tenths: int, steps: int = 1, policy: Any = None, reading: int = 0
) -> asyncio.Task[list[Answer]]:
    request = SampleRequest((tenths,), max_new_tokens=steps, seed=reading)
    return asyncio.create_task(batcher.answer(policy or SlowPolicy(), request, None))


class LateWatch(Watch):
    """Notices that a step takes too long at the moment at which the step ends."""

    @contextmanager
    def over(self, work: Work) -> Iterator[None]:
        with super().over(work):
            yield
        work.on_overrun()


async def run(
    check: Callable[[SampleBatcher, asyncio.Task[None], ServerMetrics], Any], watch: Watch | None = None
) -> None:
    metrics, watch = ServerMetrics(), watch or Watch(BOUNDS.grace_s)
    batcher = SampleBatcher(room=Room(8, 10**6), max_queue_rows=64, metrics=metrics, watch=watch, bounds=BOUNDS)
    watching = asyncio.create_task(watch.run())
    tasks = [watching, asyncio.create_task(batcher.run())]
    try:
        await check(batcher, watching, metrics)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()


async def test_many_steps_may_take_long_together() -> None:
    async def check(batcher: SampleBatcher, watching: asyncio.Task[None], metrics: ServerMetrics) -> None:
        assert (await ask(batcher, 3, steps=6))[0].text == "yes"
        assert not batcher.is_stuck

    await run(check)


async def test_request_whose_step_does_not_end_fails_alone_and_what_waits_is_turned_away() -> None:
    async def check(batcher: SampleBatcher, watching: asyncio.Task[None], metrics: ServerMetrics) -> None:
        guilty = ask(batcher, 10)
        await asyncio.sleep(0.1)
        waiting = ask(batcher, 1)
        outcomes = await asyncio.gather(guilty, waiting, return_exceptions=True)
        assert [type(each) for each in outcomes] == [NotLoadable, PolicyUnavailable]
        assert (await ask(batcher, 0))[0].text == "yes"
        assert not watching.done()
        assert metrics.registry.get_sample_value("rewardloop_stuck_runs_total", {"model": "policy"}) == 1

    await run(check)


async def test_prompt_that_takes_too_long_to_read_fails_alone_and_what_is_sampled_is_turned_away() -> None:
    async def check(batcher: SampleBatcher, watching: asyncio.Task[None], metrics: ServerMetrics) -> None:
        policy = SlowPolicy()
        sampled = ask(batcher, 1, steps=50, policy=policy)
        await asyncio.sleep(0.2)
        guilty = ask(batcher, 0, policy=policy, reading=10)
        outcomes = await asyncio.gather(sampled, guilty, return_exceptions=True)
        assert [type(each) for each in outcomes] == [PolicyUnavailable, NotLoadable]
        assert (await ask(batcher, 0, policy=policy))[0].text == "yes"
        assert not watching.done()

    await run(check)


async def test_step_that_ends_while_it_is_told_to_stop_leaves_the_worker_ready() -> None:
    async def check(batcher: SampleBatcher, watching: asyncio.Task[None], metrics: ServerMetrics) -> None:
        assert (await ask(batcher, 0))[0].text == "yes"
        await asyncio.sleep(0.1)
        assert batcher.is_ready
        assert (await ask(batcher, 0))[0].text == "yes"

    await run(check, LateWatch())


async def test_step_that_goes_on_fails_its_requests_and_ends_the_process() -> None:
    async def check(batcher: SampleBatcher, watching: asyncio.Task[None], metrics: ServerMetrics) -> None:
        guilty = ask(batcher, 30)
        await asyncio.sleep(1.0)
        assert batcher.is_stuck
        with pytest.raises(PolicyUnavailable):
            await ask(batcher, 0)
        with pytest.raises(InternalError):
            await guilty
        with pytest.raises(LostThread):
            await watching

    await run(check)


def test_stopped_worker_makes_generate_unavailable_and_is_back_when_it_goes_on(tmp_path: Path, redis_url: str) -> None:
    store = ModelStore(tmp_path / "models")
    publish_sum_version(store)
    publish_policy(store, small_llama(0), byte_encoder())
    worker = Worker(tmp_path, redis_url, "--max-new-tokens", "8")
    arguments = ["--policy-address", worker.address]
    try:
        worker.until_serving()
        with (
            serving(tmp_path / "models", redis_url, tmp_path / "serve.log", *arguments) as server,
            RewardloopClient(server.address, max_attempts=1, timeout_s=60) as client,
        ):
            until(lambda: client.health(SERVICE), 10)
            client.generate("hello")
            worker.process.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(Unavailable):
                client.generate("hello")
            assert time.monotonic() - started < 15
            assert not client.health(SERVICE)
            with pytest.raises(Unavailable):
                client.generate("hello")
            worker.process.send_signal(signal.SIGCONT)
            until(lambda: client.health(SERVICE), 20)
            client.generate("hello")
    finally:
        worker.process.send_signal(signal.SIGCONT)
        worker.stop()


def until(holds: Callable[[], bool], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
