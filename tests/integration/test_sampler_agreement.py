"""What a run does when its sampler is not the policy that learns, and a run that samples on a vLLM server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_versions import byte_encoder, small_llama
from support.vllm_server import vllm_server

from rewardloop.formats.text import Turn
from rewardloop.formats.vocabulary import ONLINE_ALGORITHMS, OnlineAlgorithm
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.policy.examples import Examples
from rewardloop_trainer.policy.learn import Trained, learn_policy
from rewardloop_trainer.policy.online.agreement import SamplerDisagrees
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.open_sampler import open_sampler
from rewardloop_trainer.policy.online.sampler import LocalSampler, Said, SampleCall, SamplerAway, SamplerError
from rewardloop_trainer.policy.online.train import OnlineOutcome, train_online
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.settings import PolicySettings

torch.set_num_threads(1)
ENCODER = byte_encoder(64)
PROMPTS: list[Prompt] = [(Turn("user", text),) for text in ("a", "what?", "a longer question")]
USUAL: dict[str, Any] = {"steps": 3, "prompts": 3, "responses": 2, "max_new_tokens": 8, "learning_rate": 1e-2}
ONLINE = OnlineSettings.model_validate(USUAL)
# Within what bfloat16 and another engine's kernels do to a log-probability, and far beyond it.
NOISE, WRONG = 0.02, 0.5


def letters(_: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
    return [[Reward(float(sum(c.islower() for c in text))) if text.strip() else None for text in g] for g in texts]


class Other:
    """Samples of ``model``, which is not the one that learns, from weights that are ``age`` steps old."""

    name = "another engine"

    def __init__(self, model: Any, age: int = 0) -> None:
        self._of = LocalSampler(model, ENCODER)
        self._age = age

    def sample(self, call: SampleCall, on_batch: Callable[[], None]) -> Said:
        said = self._of.sample(call, on_batch)
        return replace(said, step=said.step - self._age)


def shifted(size: float, seed: int = 0) -> Any:
    """The policy of `small_llama`, whose logits differ at random by ``size``."""
    model = small_llama(seed)
    generator = torch.Generator().manual_seed(9)
    model.lm_head.register_forward_hook(
        lambda *parts: parts[2] + size * torch.randn(parts[2].shape[-1], generator=generator)
    )
    return model


def learn(sampler: Any, algorithm: OnlineAlgorithm = "ppo", **changed: Any) -> OnlineOutcome:
    settings = ONLINE.model_copy(update=changed)
    task = OnlineTask(algorithm_of(algorithm, settings), settings, PROMPTS)
    return train_online(small_llama(0), ENCODER, task, letters, sampler=sampler)


@pytest.mark.parametrize("algorithm", ONLINE_ALGORITHMS)
def test_samples_of_another_model_stop_every_algorithm_with_the_samplers_name_and_the_figure(
    algorithm: OnlineAlgorithm,
) -> None:
    with pytest.raises(SamplerDisagrees, match=r"sampler another engine: .* are 0?\.\d+ nats per token of KL"):
        learn(Other(small_llama(1)), algorithm)


def test_its_own_samples_agree_in_every_step_and_weigh_1() -> None:
    for done in learn(None).history:
        assert done.figures["sampler_gap_max"] < 1e-3
        assert abs(done.figures["sampler_kl"]) < 1e-5
        assert done.figures["importance_capped"] == 0.0


def test_small_differences_are_measured_and_corrected() -> None:
    (first, *_) = learn(Other(shifted(NOISE)), steps=1).history
    assert 0.1 * NOISE < first.figures["sampler_gap"] < 10 * NOISE
    assert 0 < first.figures["sampler_kl"] < 0.02


def test_older_weights_may_differ_by_what_an_update_may_move_them() -> None:
    sampler = Other(shifted(WRONG), age=1)
    with pytest.raises(SamplerDisagrees):
        learn(Other(shifted(WRONG)))
    with pytest.raises(SamplerDisagrees):
        learn(sampler, max_update_kl=0.001)
    assert learn(sampler, max_update_kl=1.0, steps=1).history


def learn_on(url: str, directory: Path, **changed: Any) -> list[StepDone]:
    """A run that the settings alone send to a server."""
    online = {**USUAL, "weights": "lora", "sampler": "vllm", "vllm": {"url": url, **changed}}
    settings = PolicySettings.model_validate({"algorithm": "grpo", "online": online})
    seen: list[StepDone] = []
    saved: list[Trained] = []
    control = RunControl(directory / "checkpoints", on_step=seen.append, save=saved.append)
    learn_policy(small_llama(0), ENCODER, Examples(PROMPTS, (), ()), Examples((), (), ()), settings, letters, control)
    assert len(saved) == 1
    return seen


def test_the_settings_alone_send_a_run_to_a_server_whose_samples_agree(tmp_path: Path) -> None:
    with vllm_server(small_llama(0)) as server:
        seen = learn_on(server.url, tmp_path)
        assert len(seen) == 3
        assert max(done.figures["sampler_gap_max"] for done in seen) < 1e-3
        assert len(server.asked("/v1/load_lora_adapter")) == 4  # of each step, and of the policy at the end
        assert server.adapters == {}
    assert list((tmp_path / "adapters").iterdir()) == []


def test_a_server_of_another_base_stops_the_run_with_its_address_and_the_figure(tmp_path: Path) -> None:
    with vllm_server(small_llama(1)) as server, pytest.raises(SamplerDisagrees) as refusal:
        learn_on(server.url, tmp_path)
    assert f"sampler vllm at {server.url.removeprefix('http://')}: " in str(refusal.value)
    assert "nats per token" in str(refusal.value)


def test_a_server_that_is_not_there_is_named_without_what_its_url_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(SamplerAway, match=r"^vllm at 127\.0\.0\.1:9: /v1/models: ConnectError"):
        learn_on("http://user:secret@127.0.0.1:9", tmp_path)


def test_what_the_server_needs_is_asked_for_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SamplerError, match=r"api_key_file: .*No such file"):
        learn_on("http://127.0.0.1:9", tmp_path, api_key_file=tmp_path / "missing")
    monkeypatch.setattr("rewardloop_trainer.policy.online.open_sampler.find_spec", lambda _: None)
    with pytest.raises(SamplerError, match=r"pip install 'rewardloop\[vllm\]'"):
        learn_on("http://127.0.0.1:9", tmp_path)
    with open_sampler(ONLINE, None, ENCODER, None) as sampler:
        assert sampler is None
