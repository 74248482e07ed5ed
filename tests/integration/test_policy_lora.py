"""Low-rank adapters: they learn, the model without them is the reference, and merged they are a plain model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.learning_runs import learning_seed
from support.policy_versions import FEW_CHARACTERS, byte_encoder, quick_policy
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.learner import Learner
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward

ENCODER = byte_encoder(64, FEW_CHARACTERS)
PROMPTS: list[Prompt] = [(Turn("user", f"q{i}"),) for i in range(5)]
ROWS = [Completion((5, 6, 7, 8, 9, 1), 3), Completion((9, 8, 7, 6, 5, 4, 3, 1), 2)]
SETTINGS = OnlineSettings.model_validate(
    {
        "steps": 24,
        "prompts": 4,
        "responses": 8,
        "max_new_tokens": 8,
        "epochs": 2,
        "minibatch": 16,
        "learning_rate": 0.03,
        "beta": 0.01,
        "max_update_kl": 100.0,
        "weights": "lora",
        "lora": {"rank": 8, "alpha": 32, "modules": "all"},
        "critic": {"warmup_steps": 0},
    }
)


# So narrow a model's head, which adapters leave alone, must be large: it bounds what the layers below can say.


def peaked_llama() -> Any:
    model, _ = quick_policy(learning_seed())
    with torch.no_grad():
        model.lm_head.weight.mul_(5)
    return model


def small_gpt2() -> Any:
    torch.manual_seed(learning_seed())
    config = GPT2Config(
        vocab_size=2 + len(FEW_CHARACTERS),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        eos_token_id=1,
        bos_token_id=1,
        pad_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config)
    with torch.no_grad():  # it is the head too
        model.transformer.wte.weight.mul_(10)
    return model.eval()


MODELS = pytest.mark.parametrize("build", [peaked_llama, small_gpt2], ids=["llama", "gpt2"])


def small_digits(_: list[Prompt], texts: list[list[str]]) -> list[list[Reward | None]]:
    return [[Reward(sum(c in "01234" for c in t) / len(t)) if t.strip() else None for t in g] for g in texts]


@pytest.mark.learning
@MODELS
def test_ppo_with_adapters_learns_and_leaves_a_plain_model(build: Callable[[], Any], tmp_path: Path) -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = OnlineTask(algorithm_of("ppo", SETTINGS), SETTINGS, PROMPTS)
    outcome = train_online(model, ENCODER, task, small_digits, seed=learning_seed(3))
    scores = [done.figures["score"] for done in outcome.history]
    assert sum(scores[-3:]) / 3 - scores[0] > 0.1
    assert outcome.history[0].figures["kl"] == pytest.approx(0, abs=1e-5)
    assert outcome.history[-1].figures["kl"] > 0.1

    outcome.model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    after = loaded.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    linear = ("proj.weight", "c_attn.weight", "c_fc.weight")
    assert changed
    assert all(name.endswith(linear) for name in changed)


@MODELS
def test_the_model_without_adapters_is_the_reference_and_merging_changes_no_probability(
    build: Callable[[], Any],
) -> None:
    model = build()
    learner = Learner(model, 0, SETTINGS, has_critic=True)
    as_it_came = learner.measured(ROWS, 8, 1.0).logprobs
    for name, parameter in learner.policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.5)
    adapted = learner.measured(ROWS, 8, 1.0).logprobs
    assert (adapted - as_it_came).abs().max() > 0.1
    torch.testing.assert_close(learner.reference_logprobs(ROWS, 8, 1.0), as_it_came, atol=1e-6, rtol=0)
    torch.testing.assert_close(learner.measured(ROWS, 8, 1.0).logprobs, adapted, atol=0, rtol=0)
    learner.policy = learner.merged()
    torch.testing.assert_close(learner.measured(ROWS, 8, 1.0).logprobs, adapted, atol=1e-4, rtol=0)
