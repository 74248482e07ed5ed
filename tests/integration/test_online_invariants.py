"""What sampling, reference and update must agree on in learning from own answers, and what must not move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.policy_versions import byte_encoder, small_llama
from torch import Tensor

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.token_batches import rate_scale
from rewardloop_trainer.policy.online.agreement import SamplerDisagrees
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.learner import Learner
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online.update import ratio_tolerance
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Sampling, roll_out

torch.set_num_threads(1)
ENCODER = byte_encoder(64)
PROMPTS = [(Turn("user", text),) for text in ("a", "what?", "a longer question")]
PPO = OnlineSettings.model_validate(
    {"steps": 2, "prompts": 3, "responses": 2, "max_new_tokens": 8, "learning_rate": 1e-2, "warmup_share": 0.0}
)


def letters(_: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
    return [[Reward(float(sum(c.islower() for c in text))) if text.strip() else None for text in g] for g in texts]


def task_of(settings: OnlineSettings) -> OnlineTask:
    return OnlineTask(algorithm_of("ppo", settings), settings, PROMPTS)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_update_and_reference_give_the_sampled_tokens_one_probability(temperature: float) -> None:
    model = small_llama().train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5  # not to be applied
    learner = Learner(model, ENCODER.format.pad, PPO, has_critic=True)
    groups = roll_out(learner.policy, ENCODER, PROMPTS, Sampling(4, 8, seed=1, temperature=temperature))
    said = [rollout for group in groups for rollout in group]
    rows = [rollout.sequence for rollout in said]
    sampled = torch.tensor([[*r.logprobs, *[0.0] * (8 - len(r.logprobs))] for r in said])
    measured = learner.measured(rows, 8, temperature)
    torch.testing.assert_close(measured.logprobs, sampled, atol=1e-4, rtol=0)
    torch.testing.assert_close(learner.reference_logprobs(rows, 8, temperature), sampled, atol=1e-4, rtol=0)
    assert measured.values is not None
    assert not measured.values.any()  # the value head starts at 0


def test_probabilities_that_differ_before_any_update_end_the_run() -> None:
    model = small_llama()

    def noisy(_: Any, __: Any, logits: Tensor) -> Tensor:
        return logits + torch.randn_like(logits)

    model.lm_head.register_forward_hook(noisy)
    with pytest.raises(SamplerDisagrees, match="sampler local: "):
        train_online(model, ENCODER, task_of(PPO), letters)
    unchecked = PPO.model_copy(update={"max_sampler_kl": 1e9})
    with pytest.raises(ArithmeticError, match="before any update, a probability ratio is"):
        train_online(model, ENCODER, task_of(unchecked), letters)


def test_a_policy_in_bfloat16_learns_though_its_ratios_are_rounded() -> None:
    assert ratio_tolerance([torch.float32]) == 1e-2
    assert 0.02 < ratio_tolerance([torch.float32, torch.float16]) < 0.04
    assert 0.2 < ratio_tolerance([torch.float32, torch.bfloat16, torch.uint8]) < 0.3
    model = small_llama().to(torch.bfloat16)
    model.lm_head.weight.data *= 40  # logits as large as those of a trained model
    before = {name: value.clone() for name, value in model.named_parameters()}
    critic = PPO.critic.model_copy(update={"warmup_steps": 0})
    train_online(model, ENCODER, task_of(PPO.model_copy(update={"micro_batch_tokens": 16, "critic": critic})), letters)
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize(("warmup_steps", "moves"), [(2, False), (1, True)])
def test_the_policy_stays_while_the_critic_warms_up(warmup_steps: int, moves: bool) -> None:
    model = small_llama()
    before = {name: value.clone() for name, value in model.named_parameters()}
    critic = PPO.critic.model_copy(update={"warmup_steps": warmup_steps})
    settings = PPO.model_copy(update={"critic": critic})
    train_online(model, ENCODER, task_of(settings), letters)
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters()) == moves


def test_rates_rise_and_then_fall_to_0() -> None:
    expected = [0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert [rate_scale(step, 10, 0.2) for step in range(10)] == pytest.approx(expected)
