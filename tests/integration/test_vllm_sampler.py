"""The vLLM backend against a server with vLLM's HTTP API that samples from the adapters it is told to load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.real_vllm import SAMPLES, RealVllm
from support.vllm_server import VllmServer, vllm_server

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Turn
from rewardloop_sampling.vllm_client import VllmEndpoint
from rewardloop_trainer.data.completions import token_logprobs
from rewardloop_trainer.policy.online.sampler import LocalSampler, Said, SampleCall, SamplerAway, SamplerError
from rewardloop_trainer.policy.online.vllm_sampler import VllmSampler, step_of
from rewardloop_trainer.policy.rollouts import Rollout, Sampling

ENCODER = byte_encoder(64)
PROMPTS = [(Turn("user", text),) for text in ("hi", "how are you?", "bye")]
COMPLETIONS, LOAD = "/v1/completions", "/v1/load_lora_adapter"


def call(step: int = 0, **changed: Any) -> SampleCall:
    usual: dict[str, Any] = {"responses": 3, "max_new_tokens": 6, "temperature": 0.7, "seed": 5}
    return SampleCall(step, PROMPTS, [10, 11, 12], Sampling(**{**usual, **changed}))


@pytest.fixture
def model() -> Any:
    """A causal LM with adapters in it, as it is while it learns."""
    model = small_llama(2)
    get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    learn(model)
    return model


@pytest.fixture
def server() -> Iterator[VllmServer]:
    with vllm_server(small_llama(2)) as server:
        yield server


@pytest.fixture
def make(server: VllmServer, model: Any, tmp_path: Path) -> Iterator[Callable[..., VllmSampler]]:
    made: list[VllmSampler] = []

    def make(max_age_steps: int = 0, **changed: Any) -> VllmSampler:
        usual: dict[str, Any] = {"timeout_s": 10.0, "attempts": 3, "first_pause_s": 0.01, "parallel": 4}
        endpoint = VllmEndpoint(server.url, **{**usual, **changed})
        made.append(VllmSampler(endpoint, model, ENCODER, tmp_path / "adapters", max_age_steps=max_age_steps))
        return made[-1]

    yield make
    for sampler in made:
        sampler.abandon()


def learn(model: Any) -> None:
    """Move every adapter, as an optimizer step would."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))


def ask(sampler: VllmSampler, asked: SampleCall) -> Said:
    return sampler.sample(asked, lambda: None)


def all_of(said: Said) -> list[Rollout]:
    return [rollout for group in said.groups for rollout in group]


def assert_said_by(model: Any, said: Said, most: float) -> None:
    """Check that each token's log-probability is the model's own, within ``most`` nats."""
    rows = [rollout.sequence for rollout in all_of(said)]
    logprobs, is_token = token_logprobs(model, rows, 0, temperature=0.7)
    for i, rollout in enumerate(all_of(said)):
        assert logprobs[i][is_token[i]].tolist() == pytest.approx(rollout.logprobs, abs=most)


def test_answers_are_those_of_the_weights_that_learn_with_their_probabilities(
    make: Callable[..., VllmSampler], server: VllmServer, model: Any
) -> None:
    sampler = make()
    said = ask(sampler, call(step=7))
    assert said.step == 7
    local = LocalSampler(model, ENCODER).sample(call(step=7), lambda: None)
    for there, here in zip(all_of(said), all_of(local), strict=True):
        assert (there.text, there.sequence, there.finish) == (here.text, here.sequence, here.finish)
        assert there.logprobs == pytest.approx(here.logprobs, abs=1e-4)
    assert_said_by(model, said, 1e-4)
    assert {rollout.finish for rollout in all_of(said)} <= {"stop", "length"}


def test_every_step_has_an_adapter_by_name_and_only_the_newest_stays(
    make: Callable[..., VllmSampler], server: VllmServer, model: Any, tmp_path: Path
) -> None:
    sampler = make(name="mine")
    first = ask(sampler, call(step=0))
    assert ask(sampler, call(step=0)).groups == first.groups
    assert len(server.asked(LOAD)) == 1
    learn(model)
    second = ask(sampler, call(step=1))
    assert [r.logprobs for r in all_of(second)] != [r.logprobs for r in all_of(first)]
    (name,) = server.adapters
    assert name.startswith("mine.")
    assert step_of(name) == second.step == 1
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {name, name.replace(".step1", ".lock")}
    sampler.close()
    assert server.adapters == {}
    assert list((tmp_path / "adapters").iterdir()) == []


def test_an_older_adapter_answers_while_its_age_is_allowed_and_says_its_step(
    make: Callable[..., VllmSampler], server: VllmServer, model: Any
) -> None:
    sampler = make(max_age_steps=2)
    assert [ask(sampler, call(step=step)).step for step in (3, 4, 5, 6, 7)] == [3, 3, 3, 6, 6]
    # A trainer that went back to a checkpoint has older weights than those on the server.
    assert ask(sampler, call(step=5)).step == 5
    assert len(server.asked(LOAD)) == 3


def test_what_an_ended_trainer_left_is_unloaded_and_what_lives_or_is_not_ours_stays(
    make: Callable[..., VllmSampler], server: VllmServer, model: Any, tmp_path: Path
) -> None:
    killed, alive = make(), make()
    elsewhere = VllmSampler(VllmEndpoint(server.url), model, ENCODER, tmp_path / "elsewhere")
    for sampler in (killed, alive, elsewhere):
        ask(sampler, call(step=4))
    (left, lives, foreign) = server.adapters
    killed.abandon()
    elsewhere.abandon()
    third = make()
    ask(third, call(step=4))
    assert left not in server.adapters
    assert {lives, foreign} < server.adapters.keys()
    assert ask(alive, call(step=4)).groups == ask(third, call(step=4)).groups


def test_trainers_of_one_name_sample_side_by_side_and_end_without_each_others_adapters(
    make: Callable[..., VllmSampler], server: VllmServer
) -> None:
    first, second = make(), make()
    for step in range(3):
        assert ask(first, call(step=step)).step == step
        assert ask(second, call(step=step)).step == step
    assert len(server.adapters) == 2
    first.close()
    assert ask(second, call(step=2)).step == 2
    second.close()
    assert server.adapters == {}


def test_a_server_that_reports_raw_probabilities_is_found_out_before_the_first_step(
    make: Callable[..., VllmSampler], server: VllmServer
) -> None:
    server.is_raw = True
    with pytest.raises(SamplerError, match=r"from before the temperature, which is 0\.95 here: .*processed_logprobs"):
        ask(make(), call(temperature=0.95))
    assert [body["n"] for body in server.asked(COMPLETIONS)] == [1, 1]  # the probe alone
    # At temperature 1 both kinds are the same.
    assert len(all_of(ask(make(), call(temperature=1.0)))) == 9


def test_full_weights_are_refused(server: VllmServer, tmp_path: Path) -> None:
    sampler = VllmSampler(VllmEndpoint(server.url), small_llama(2), ENCODER, tmp_path)
    with pytest.raises(ValueError, match="set weights to lora"):
        ask(sampler, call())
    assert server.asked(LOAD) == []


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_asked(
    make: Callable[..., VllmSampler], server: VllmServer
) -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        ask(make(), call(max_new_tokens=60))
    assert server.history == []


def test_what_passes_is_tried_again_with_the_same_answers(make: Callable[..., VllmSampler], server: VllmServer) -> None:
    first = make()
    expected = ask(first, call())
    first.abandon()
    server.faults = {
        COMPLETIONS: [busy, drop, broken_off],
        "/v1/models": [busy],
        LOAD: [then_lose_the_answer],
        "/v1/unload_lora_adapter": [then_lose_the_answer],
    }
    again = ask(make(attempts=5), call())
    assert again.groups == expected.groups
    assert len(server.adapters) == 1


@pytest.mark.parametrize("path", [COMPLETIONS, LOAD])
def test_a_server_that_stays_away_is_given_up(make: Callable[..., VllmSampler], server: VllmServer, path: str) -> None:
    server.faults = {path: [busy] * 100}
    with pytest.raises(SamplerAway, match=r"503: .*too many"):
        ask(make(), call())
    sampler = make()
    sampler._client._http.base_url = "http://127.0.0.1:1"
    with pytest.raises(SamplerAway, match="ConnectError"):
        ask(sampler, call())


def test_a_server_that_hangs_is_given_up_in_time(make: Callable[..., VllmSampler], server: VllmServer) -> None:
    server.faults = {"/v1/models": [hang]}
    with pytest.raises(SamplerAway, match="ReadTimeout"):
        ask(make(timeout_s=0.2, attempts=1), call())


def test_a_refusal_is_not_tried_again_and_a_server_without_adapters_is_explained(
    make: Callable[..., VllmSampler], server: VllmServer
) -> None:
    server.faults = {LOAD: [lambda handler, body: handler.send(404, {"detail": "Not Found"}) or True]}
    with pytest.raises(SamplerError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        ask(make(), call())
    server.faults = {COMPLETIONS: [lambda handler, body: handler.refuse(400, "too long") or True]}
    with pytest.raises(SamplerError, match=r"400: .*too long"):
        ask(make(), call())
    assert len(server.asked(LOAD)) == 2


GARBAGE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda reply: reply.update(model="base"), "'base' replied"),
    (lambda reply: reply.update(choices=None), "choices: not a list"),
    (lambda reply: reply["choices"].pop(), "responses instead of"),
    (lambda reply: reply["choices"][0].update(index="0"), "index: not a number"),
    (lambda reply: reply["choices"][0].update(token_ids=None), "token_ids: not a list"),
    (lambda reply: reply["choices"][0].update(token_ids=[]), "without a log-probability"),
    (lambda reply: reply["choices"][0].update(token_ids=["a"]), "tokens"),
    (lambda reply: reply["choices"][0].update(logprobs=None), "token_logprobs: not a list"),
    (lambda reply: reply["choices"][0]["logprobs"]["token_logprobs"].append(-1.0), "without a log-probability"),
    (lambda reply: reply["choices"][0]["logprobs"]["token_logprobs"].__setitem__(0, None), "without a log-prob"),
    (lambda reply: reply["choices"][0]["logprobs"]["token_logprobs"].__setitem__(0, 0.5), "without a log-prob"),
    (lambda reply: reply["choices"][0].update(finish_reason="abort"), "finish_reason 'abort'"),
    (lambda reply: reply["choices"][0].update(finish_reason="stop", token_ids=[9] * 6), "finish_reason 'stop'"),
    (lambda reply: reply["choices"][0].update(prompt_token_ids=[3]), "another prompt"),
]


@pytest.mark.parametrize(("alter", "reason"), GARBAGE)
def test_an_answer_that_is_none_is_never_learned_from(
    make: Callable[..., VllmSampler], server: VllmServer, alter: Callable[[dict[str, Any]], object], reason: str
) -> None:
    def alter_six_tokens(reply: dict[str, Any]) -> None:
        first = reply["choices"][0]
        first.update(token_ids=[9] * 6, finish_reason="length")
        first["logprobs"]["token_logprobs"] = [-1.0] * 6
        alter(reply)

    server.alter = alter_six_tokens
    with pytest.raises(SamplerError, match=reason):
        ask(make(), call())


def test_a_reply_that_is_not_json_is_garbage(make: Callable[..., VllmSampler], server: VllmServer) -> None:
    for data, reason in ((b"<html>", "not JSON"), (b"[]", "not an object")):
        server.faults = {COMPLETIONS: [lambda handler, body, data=data: handler.send_bytes(200, data) or True] * 9}
        with pytest.raises(SamplerError, match=reason):
            ask(make(), call())


def test_asked_to_stop_it_stops(make: Callable[..., VllmSampler], server: VllmServer) -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        make().sample(call(), stop)
    assert server.history == []


def busy(handler: Any, body: Any) -> bool:
    handler.refuse(503, "too many requests wait")
    return True


def drop(handler: Any, body: Any) -> bool:
    handler.close_connection = True
    return True


def broken_off(handler: Any, body: Any) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


def then_lose_the_answer(handler: Any, body: Any) -> bool:
    """The work is done, and nobody is told."""
    send = handler.send
    handler.send = lambda status, reply: None
    handler.answer(body)
    handler.send = send
    return drop(handler, body)


def hang(handler: Any, body: Any) -> bool:
    time.sleep(0.6)
    return drop(handler, body)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_vllm_itself_samples_from_the_weights_that_learn_and_its_death_is_clear(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    publish_policy(store, small_llama(2, width=128), ENCODER)
    model = small_llama(2, width=128)
    get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    learn(model)
    vllm = RealVllm(store.fetch("policy", 1), "policy-1", tmp_path / "vllm.log", *SAMPLES)
    sampler = VllmSampler(
        VllmEndpoint(vllm.url, timeout_s=60.0, attempts=2, first_pause_s=0.1, parallel=4),
        model,
        ENCODER,
        tmp_path / "adapters",
    )
    try:
        vllm.until_serving()
        for step in range(3):
            said = ask(sampler, call(step=step))
            assert_said_by(model, said, 1e-3)
            assert said.step == step
            learn(model)
        vllm.kill()
        with pytest.raises(SamplerAway):
            ask(sampler, call(step=3))
    finally:
        sampler.abandon()
        if vllm.process.poll() is None:
            vllm.kill()
