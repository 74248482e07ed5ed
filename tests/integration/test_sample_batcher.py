"""Requests in the policy worker's queue: they join what is sampled, leave it when done, and fail alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.tiny_policies import tiny_policy

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_policy.policy_model import PolicyModel, load_policy_model
from rewardloop_policy.policy_text import Answer
from rewardloop_policy.sample_batcher import SampleBatcher
from rewardloop_policy.sample_thread import Room
from rewardloop_policy.speech import Speech
from rewardloop_sampling.generation_rules import GenerationRules
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.calls.errors import DeadlinePassed, NotLoadable
from rewardloop_server.observe.metrics import ServerMetrics

LONG = SampleRequest([40, 41], seed=1, max_new_tokens=100)
SHORT = SampleRequest([50, 51, 52], 2, seed=2, max_new_tokens=4)
OTHER = SampleRequest([60], 1, 0.0, seed=3, max_new_tokens=6)
NEVER_READ = SampleRequest([10**6], max_new_tokens=4)  # no such row in the embedding


class Steps:
    """The forward passes of a policy in order, each as its number of rows. `before` may hold them up or raise.

    ``read``: how many of them read prompts of more than one token.
    """

    def __init__(self, model: Any) -> None:
        self.rows: list[int] = []
        self.read = 0
        self.before: Callable[[int, int], object] = lambda step, rows: None
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: Any, __: Any, given: Mapping[str, Any]) -> None:
        self.before(len(self.rows), given["input_ids"].shape[0])
        self.rows.append(given["input_ids"].shape[0])
        self.read += given["input_ids"].shape[1] > 1


def policy(seed: int = 0) -> tuple[PolicyModel, Steps]:
    """A policy that never ends by itself, in float64, so that its texts do not depend on the batch's shape."""
    model = small_llama(seed).double()
    rules = GenerationRules.of(model, [])
    return PolicyModel(Manifest(model="policy", version=str(seed)), model, byte_encoder(), rules), Steps(model)


@asynccontextmanager
async def batcher(rows: int = 64, tokens: int = 10**6) -> AsyncIterator[SampleBatcher]:
    made = SampleBatcher(room=Room(rows, tokens), max_queue_rows=64, metrics=ServerMetrics())
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        made.close()


def asking(
    made: SampleBatcher, of: PolicyModel, request: SampleRequest, deadline: float | None = None, speech: Any = None
) -> asyncio.Task[list[Answer]]:
    return asyncio.create_task(made.answer(of, request, deadline, speech))


def alone(request: SampleRequest, seed: int = 0) -> list[Answer]:
    return policy(seed)[0].answer([request])[0]


def said(answers: list[Answer]) -> list[tuple[str, int]]:
    return [(answer.text, answer.token_count) for answer in answers]


class Gate:
    """Holds up a policy before a step until it is opened."""

    def __init__(self, steps: Steps, step: int) -> None:
        self.reached, self.opened, self._step = asyncio.Event(), threading.Event(), step
        self._loop = asyncio.get_running_loop()
        steps.before = self._before

    def _before(self, step: int, _: int) -> None:
        if step == self._step:
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self.opened.wait(60)


async def test_a_short_request_is_answered_while_a_long_one_runs() -> None:
    of, steps = policy()
    async with batcher() as made:
        gate = Gate(steps, 10)
        long = asking(made, of, LONG)
        await gate.reached.wait()
        short = asking(made, of, SHORT)
        answered: list[int] = []
        short.add_done_callback(lambda _: answered.append(len(steps.rows)))
        await asyncio.sleep(0)
        second = Gate(steps, 60)
        gate.opened.set()
        assert said(await short) == said(alone(SHORT))
        assert not long.done()
        second.opened.set()
        assert said(await long) == said(alone(LONG))
    # The long one took a prefill and 99 steps, the short one a prefill of its own.
    assert len(steps.rows) == 101
    assert steps.rows.count(3) == 3
    assert answered[0] <= 60


async def test_versions_are_sampled_in_alternation() -> None:
    (old, old_steps), (new, _) = policy(1), policy(2)
    async with batcher() as made:
        gate = Gate(old_steps, 10)
        long = asking(made, old, LONG)
        await gate.reached.wait()
        short = asking(made, new, SHORT)
        await asyncio.sleep(0)
        second = Gate(old_steps, 60)
        gate.opened.set()
        assert said(await short) == said(alone(SHORT, 2))
        assert not long.done()
        second.opened.set()
        assert said(await long) == said(alone(LONG, 1))
    assert set(old_steps.rows) == {1}


@pytest.mark.parametrize(("rows", "tokens"), [(3, 10**6), (64, 3 * 102)])
async def test_requests_wait_for_room(rows: int, tokens: int) -> None:
    of, steps = policy()
    async with batcher(rows, tokens) as made:
        asked = [asking(made, of, request) for request in (LONG, SHORT, SHORT, OTHER, SHORT)]
        answers = [said(answers) for answers in await asyncio.gather(*asked)]
    assert answers == [said(alone(request)) for request in (LONG, SHORT, SHORT, OTHER, SHORT)]
    assert max(steps.rows) == 3


async def test_while_more_wait_than_there_is_room_for_their_prompts_are_read_together() -> None:
    of, steps = policy()
    requests = [SampleRequest([40 + i, 41], seed=i, max_new_tokens=2 + i % 9) for i in range(40)]
    async with batcher(8) as made:
        answers = await asyncio.gather(*(asking(made, of, request) for request in requests))
    assert [said(each) for each in answers] == [said(alone(request)) for request in requests]
    assert 5 <= steps.read <= len(steps.rows) / 8 + 2
    assert max(steps.rows) == 8


async def test_a_request_that_takes_more_than_there_is_room_for_is_sampled_alone() -> None:
    of, steps = policy()
    async with batcher(4, 60) as made:
        large = SampleRequest([40], 6, seed=4, max_new_tokens=20)
        answers = await asyncio.gather(asking(made, of, OTHER), asking(made, of, large), asking(made, of, OTHER))
    assert [said(each) for each in answers] == [said(alone(request)) for request in (OTHER, large, OTHER)]
    assert set(steps.rows) == {1, 6}


async def test_a_caller_that_goes_away_frees_its_rows_at_once() -> None:
    of, steps = policy()
    async with batcher() as made:
        gate = Gate(steps, 10)
        long, four = asking(made, of, LONG), asking(made, of, SampleRequest([7], 4, max_new_tokens=100))
        await gate.reached.wait()
        four.cancel()
        await asyncio.gather(four, return_exceptions=True)
        gate.opened.set()
        assert said(await long) == said(alone(LONG))
    assert steps.rows == [2, *[5] * 10, *[1] * 89]


async def test_a_deadline_that_passes_frees_its_rows_at_once() -> None:
    of, steps = policy()
    async with batcher() as made:
        deadline = time.monotonic() + 0.3
        steps.before = lambda step, _: time.sleep(0.4) if step == 10 else None
        long = asking(made, of, LONG)
        late = asking(made, of, SampleRequest([7], 4, max_new_tokens=100), deadline)
        with pytest.raises(DeadlinePassed, match="was sampled"):
            await late
        assert said(await long) == said(alone(LONG))
    assert steps.rows == [2, *[5] * 10, *[1] * 89]


async def test_a_request_that_cannot_be_read_fails_alone() -> None:
    of, steps = policy()
    async with batcher() as made:
        gate = Gate(steps, 10)
        long = asking(made, of, LONG)
        await gate.reached.wait()
        asked = [asking(made, of, request) for request in (SHORT, NEVER_READ, OTHER)]
        await asyncio.sleep(0)
        gate.opened.set()
        short, bad, other, first = await asyncio.gather(*asked, long, return_exceptions=True)
    assert isinstance(bad, NotLoadable)
    for answers, request in ((short, SHORT), (other, OTHER), (first, LONG)):
        assert not isinstance(answers, BaseException)
        assert said(answers) == said(alone(request))
    # The long one was not sampled again.
    assert steps.rows.count(1) < 120


async def test_a_step_for_which_memory_does_not_suffice_is_taken_again_by_each_request_alone() -> None:
    of, steps = policy()

    def fail(_: int, rows: int) -> None:
        if rows > 2:
            raise torch.OutOfMemoryError("no memory")

    steps.before = fail
    texts: list[str] = []
    async with batcher() as made:
        speech = Speech(on_text=lambda _, text: texts.append(text))
        asked = [asking(made, of, OTHER, speech=speech), *(asking(made, of, request) for request in (SHORT, OTHER))]
        answers = await asyncio.gather(*asked)
    assert [said(each) for each in answers] == [said(alone(request)) for request in (OTHER, SHORT, OTHER)]
    assert "".join(texts) == answers[0][0].text  # none of it twice


async def test_texts_are_shown_while_others_come_and_go() -> None:
    of, _ = policy()
    shown: dict[int, str] = {}

    def on_text(candidate: int, text: str) -> None:
        shown[candidate] = shown.get(candidate, "") + text

    async with batcher() as made:
        streamed = SampleRequest([40], 3, seed=8, max_new_tokens=40)
        answering = asking(made, of, streamed, speech=Speech(on_text=on_text))
        while not answering.done():
            await asking(made, of, SHORT)
        answers = await answering
    assert said(answers) == said(alone(streamed))
    assert [shown[candidate] for candidate in range(3)] == [answer.text for answer in answers]


async def test_a_policy_with_recurrent_layers_is_sampled_in_fixed_batches_and_its_worker_says_so(
    tmp_path: Path,
) -> None:
    store = ModelStore(tmp_path)
    manifest = publish_policy(store, tiny_policy("qwen3_next"), byte_encoder())
    with capture_logs() as logs:
        of = load_policy_model(manifest, store.fetch("policy", "1"), device=torch.device("cpu"))
    (line,) = (line for line in logs if line["log_level"] == "warning")
    assert line["version"] == "1"
    assert line["layers"] == ["LinearAttentionLayer"]
    async with batcher() as made:
        requests = [SampleRequest([40 + i], 1, 0.0, max_new_tokens=4 + 3 * i) for i in range(5)]
        answers = await asyncio.gather(*(asking(made, of, request) for request in requests))
    assert [said(each) for each in answers] == [said(of.answer([request])[0]) for request in requests]


def test_a_policy_with_attention_alone_says_nothing_of_fixed_batches(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    manifest = publish_policy(store, tiny_policy("mistral"), byte_encoder())
    with capture_logs() as logs:
        load_policy_model(manifest, store.fetch("policy", "1"), device=torch.device("cpu"))
    assert [line for line in logs if line["log_level"] == "warning"] == []
