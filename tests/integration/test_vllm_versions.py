"""The policy worker's vLLM backend, in this process, against a server with vLLM's HTTP API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapted_policies import adapted
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.vllm_server import VllmServer, vllm_server

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Turn
from rewardloop_policy.policy_model import load_policy_model
from rewardloop_policy.policy_text import Answer
from rewardloop_policy.speech import Speech
from rewardloop_policy.vllm_answers import VllmAnswers
from rewardloop_policy.vllm_versions import VllmPolicy, VllmSettings, VllmVersions
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_sampling.vllm_client import VllmClient, VllmEndpoint
from rewardloop_server.calls.errors import DeadlinePassed, NotLoadable, PolicyUnavailable, QueueFull
from rewardloop_server.observe.metrics import ServerMetrics

torch.set_num_threads(1)
HELLO = (Turn("user", "Hello"),)
ASKED = SampleRequest((), candidates=3, temperature=0.7, seed=7, max_new_tokens=12)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """Version 1; 2, an adapter on it; 3, of other weights; 4, the same as 1."""
    store, base = ModelStore(tmp_path_factory.mktemp("store")), small_llama(1)
    for model in (base, adapted(base, 3), small_llama(3), base):
        publish_policy(store, model, byte_encoder())
    return store


@pytest.fixture
def server() -> Iterator[VllmServer]:
    with vllm_server(small_llama(1), "policy-1") as server:
        yield server


class Backend:
    def __init__(self, server: VllmServer, store: ModelStore, directory: Path, **bounds: int) -> None:
        endpoint = VllmEndpoint(server.url, timeout_s=60.0, attempts=2, first_pause_s=0.01)
        settings = VllmSettings(directory, most_rank=4, most_gap=1e-3)
        self.store = store
        self.versions = VllmVersions(VllmClient(endpoint), store, settings)
        usual = {"max_rows": 8, "max_queue_rows": 16, **bounds}
        self.answers = VllmAnswers(endpoint, self.versions, metrics=ServerMetrics(), **usual)

    async def load(self, version: int) -> VllmPolicy:
        manifest, directory = self.store.manifest("policy", version), self.store.fetch("policy", version)
        return await asyncio.to_thread(self.versions.load, manifest, directory)

    async def ask(self, policy: VllmPolicy, request: SampleRequest = ASKED, **how: Any) -> list[Answer]:
        asked, _ = policy.request(HELLO, request)
        return await self.answers.answer(policy, asked, how.get("deadline"), how.get("speech"))


Make = Callable[..., Any]


@pytest.fixture
def make(server: VllmServer, store: ModelStore, tmp_path: Path) -> Make:
    @asynccontextmanager
    async def make(**bounds: int) -> AsyncIterator[Backend]:
        backend = Backend(server, store, tmp_path / "adapters", **bounds)
        running = asyncio.create_task(backend.answers.run())
        yield backend
        running.cancel()
        backend.answers.close()

    return make


def by_torch(store: ModelStore, version: int, request: SampleRequest, speech: Speech | None = None) -> list[Answer]:
    manifest, directory = store.manifest("policy", version), store.fetch("policy", version)
    policy = load_policy_model(manifest, directory, device=torch.device("cpu"))
    (answers,) = policy.answer([policy.request(HELLO, request)[0]], speech)
    return answers


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("version", [1, 2])
async def test_greedy_answers_are_torchs(make: Make, store: ModelStore, version: int) -> None:
    greedy = replace(ASKED, temperature=0.0, candidates=2)
    async with make() as backend:
        found = await backend.ask(await backend.load(version), greedy)
    expected = by_torch(store, version, greedy)
    assert [(a.text, a.token_count, a.finish) for a in found] == [(a.text, a.token_count, a.finish) for a in expected]
    assert [a.logprob for a in found] == [0.0, 0.0]


async def test_the_adapter_of_a_version_gives_the_probabilities_of_its_weights(
    make: Make, server: VllmServer, store: ModelStore
) -> None:
    async with make() as backend:
        policy = await backend.load(2)
        answers = await backend.ask(policy, speech=Speech(wants_tokens=True))
        model = load_policy_model(store.manifest("policy", 2), store.fetch("policy", 2), device=torch.device("cpu"))
    assert policy.name in server.adapters
    assert policy.name.startswith("policy-2-")
    prompt = policy.request(HELLO, ASKED)[0].prompt
    for answer in answers:
        if answer.finish == "stop":
            continue
        ids = policy.encoder.tokenizer.encode(answer.text, add_special_tokens=False).ids
        if len(ids) != answer.token_count:  # text that is not of whole characters
            continue
        logits = model._model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / 0.7
        scored = logits.log_softmax(-1)[range(len(ids)), ids]
        assert [logprob for _, logprob in answer.tokens] == pytest.approx(scored.tolist(), abs=1e-3)


async def test_a_candidate_is_the_same_however_many_are_asked_for_and_seeds_repeat(make: Make) -> None:
    async with make() as backend:
        policy = await backend.load(1)
        three, five, other = [
            [a.text for a in await backend.ask(policy, each)]
            for each in (ASKED, replace(ASKED, candidates=5), replace(ASKED, seed=8))
        ]
    assert five[:3] == three
    assert len(set(five)) > 1
    assert other != three


async def test_texts_are_heard_while_they_are_sampled_and_end_before_a_stop_text(
    make: Make, server: VllmServer
) -> None:
    heard: list[tuple[int, str]] = []
    server.token_s = 0.005
    greedy = replace(ASKED, temperature=0.0, max_new_tokens=24)
    async with make() as backend:
        policy = await backend.load(1)
        whole = (await backend.ask(policy, greedy))[0].text
        speech = Speech(on_text=lambda candidate, text: heard.append((candidate, text)))
        answers = await backend.ask(policy, greedy, speech=speech)
        stop = whole[3:5]
        (stopped, *_) = await backend.ask(policy, greedy, speech=Speech(stop=(stop,)))
        await until(lambda: server.broken_streams > 0)  # the server need not sample on
    for i, answer in enumerate(answers):
        assert "".join(text for candidate, text in heard if candidate == i) == answer.text == whole
    assert len(heard) > 12
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish == "stop"
    assert stopped.token_count < 24


async def test_a_version_of_the_bases_weights_needs_no_adapter(make: Make, server: VllmServer) -> None:
    async with make() as backend:
        assert (await backend.load(1)).name == (await backend.load(4)).name == "policy-1"
    assert server.asked("/v1/load_lora_adapter") == []


async def test_versions_that_the_server_cannot_serve_are_refused_with_the_reason(
    make: Make, server: VllmServer, store: ModelStore, tmp_path: Path
) -> None:
    async with make() as backend:
        with pytest.raises(NotLoadable, match=r"policy 3 is no adapter on policy 1, .* Start vLLM on version 3"):
            await backend.load(3)
        server.is_raw = True
        with pytest.raises(NotLoadable, match="processed_logprobs"):
            await backend.load(1)
    with vllm_server(small_llama(3), "policy-1") as wrong, vllm_server(small_llama(1), "base") as unnamed:
        with pytest.raises(NotLoadable, match="differ from torch's by"):
            await Backend(wrong, store, tmp_path / "wrong").load(2)
        assert len(wrong.asked("/v1/load_lora_adapter")) == 1
        await until(lambda: not wrong.adapters)  # it is unloaded in the background
        with pytest.raises(NotLoadable, match="--served-model-name policy-VERSION"):
            await Backend(unnamed, store, tmp_path / "unnamed").load(1)


async def test_an_adapter_is_unloaded_after_its_last_use_and_is_loaded_again_if_others_unload_it(
    make: Make, server: VllmServer
) -> None:
    async with make() as backend:
        first, second = await backend.load(2), await backend.load(2)
        first.close()
        await asyncio.sleep(0.1)
        assert list(server.adapters) == [second.name]
        expected = await backend.ask(second)
        server.adapters.clear()  # as another worker does
        assert await backend.ask(second) == expected
        second.close()
        await until(lambda: not server.adapters)


async def test_switching_by_name_fails_no_request(make: Make, server: VllmServer) -> None:
    server.token_s = 0.005
    async with make(max_rows=32, max_queue_rows=64) as backend:
        old, new = await backend.load(1), await backend.load(2)
        asked: list[Awaitable[list[Answer]]] = []
        for policy in (old, new) * 4:
            asked.append(asyncio.ensure_future(backend.ask(policy)))
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*asked)
        assert all(len(each) == 3 for each in answers)
        assert [a.text for a in answers[0]] == [a.text for a in answers[2]]
        assert [a.text for a in answers[0]] != [a.text for a in answers[1]]


async def test_bounds_and_deadlines_are_kept(make: Make, server: VllmServer) -> None:
    server.token_s = 0.05
    async with make(max_rows=1, max_queue_rows=2) as backend:
        policy = await backend.load(1)
        now = asyncio.get_running_loop().time()
        first = asyncio.ensure_future(backend.ask(policy))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull):
            await backend.ask(policy)
        await first
        with pytest.raises(DeadlinePassed):
            await backend.ask(policy, deadline=time.monotonic() + 0.2)
        assert asyncio.get_running_loop().time() - now < 20
        server.token_s = 0.0
        assert len(await backend.ask(policy)) == 3  # its slots are free again


async def test_a_server_that_dies_fails_its_calls_and_serves_again_with_its_adapters_once_it_is_back(
    store: ModelStore, tmp_path: Path
) -> None:
    with vllm_server(small_llama(1), "policy-1") as server:
        backend = Backend(server, store, tmp_path / "adapters")
        running = asyncio.create_task(backend.answers.run())
        policy = await backend.load(2)
        expected = await backend.ask(policy)
        server.token_s = 0.1
        calls = [asyncio.ensure_future(backend.ask(policy)) for _ in range(3)]
        await asyncio.sleep(0.4)
        server.is_dead = True
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        port = int(server.url.rsplit(":", 1)[1])
    assert {type(each) for each in outcomes} == {PolicyUnavailable}
    assert not backend.answers.is_ready
    with pytest.raises(PolicyUnavailable, match=r"vllm at 127\.0\.0\.1"):
        await backend.ask(policy)
    with vllm_server(small_llama(1), "policy-1", port) as anew:
        await until(lambda: backend.answers.is_ready)
        assert policy.name in anew.adapters
        assert await backend.ask(policy) == expected
        running.cancel()
        backend.answers.close()
