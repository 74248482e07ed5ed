"""A policy is loaded to be trained as the settings say, and what is saved is whole and in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.learning_runs import learning_seed
from support.policy_versions import byte_encoder
from support.tiny_policies import save_tiny_policy
from torch import Tensor
from transformers import AutoModelForCausalLM

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.computing import head
from rewardloop_trainer.data.dialogues import Dialogue
from rewardloop_trainer.data.preferences import Labelled, Pair
from rewardloop_trainer.learning.live_bytes import LiveBytes
from rewardloop_trainer.learning.lora_layers import add_adapters, has_adapters, without_adapters
from rewardloop_trainer.learning.model_load import UnusableDevice
from rewardloop_trainer.learning.settings import LearnerSettings
from rewardloop_trainer.policy.dpo_train import encode_pairs, train_policy
from rewardloop_trainer.policy.kto_train import train_kto
from rewardloop_trainer.policy.offline_settings import DpoSettings, KtoSettings
from rewardloop_trainer.policy.online.learner import Learner
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.policy.sft import train_sft
from rewardloop_trainer.policy.sft_settings import SftSettings
from rewardloop_trainer.policy.start import finished, load_causal_lm
from rewardloop_trainer.policy.start import load_to_learn as load_for
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.settings import TrainSettings

ENCODER = byte_encoder(160)
PAIRS = [
    Pair((Turn("user", f"question {i}"),), "yes " * (3 + i % 4), "no " * (5 - i % 3), event_id=str(i))
    for i in range(12)
]
THUMBS = [Labelled(p.prompt, text, label) for p in PAIRS for text, label in ((p.chosen, 1.0), (p.rejected, 0.0))]
DIALOGUES = [Dialogue.answered(p.prompt, p.chosen) for p in PAIRS]
LORA = {"method": "lora", "lora": {"rank": 4, "modules": "all"}}
RATE = {"learning_rate": 1e-3, "checkpoint_every_steps": 0}
TRAINERS: dict[str, Callable[[Any, int], object]] = {
    "dpo": lambda model, budget: train_policy(
        model, ENCODER, PAIRS, [], DpoSettings.model_validate({**RATE, "micro_batch_tokens": budget})
    ),
    "kto": lambda model, budget: train_kto(
        model, ENCODER, THUMBS, [], KtoSettings.model_validate({**RATE, "micro_batch_tokens": budget})
    ),
    "sft": lambda model, budget: train_sft(
        model, ENCODER, DIALOGUES, SftSettings.model_validate({**RATE, "micro_batch_tokens": budget})
    ),
}


def load_to_learn(base: str, chosen: LearnerSettings) -> Any:
    return load_for(base, chosen, "dpo", tokens=8192, longest=160)


def settings(**changes: Any) -> LearnerSettings:
    return LearnerSettings.model_validate({"device": "cpu", **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_policy(tmp_path_factory.mktemp("base"), num_hidden_layers=6, initializer_range=0.1))


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def logits(model: Any) -> Tensor:
    ids = torch.arange(2, 42).view(2, 20)
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("changes", [{}, {"weights": "bfloat16"}, LORA, {**LORA, "weights": "bfloat16"}])
def test_what_is_saved_is_whole_in_float32_and_answers_as_it_learned(
    base: str, tmp_path: Path, trainer: str, changes: dict[str, Any]
) -> None:
    torch.manual_seed(learning_seed())
    chosen = settings(**changes)
    before, model = load_causal_lm(base, chosen), load_to_learn(base, chosen)
    TRAINERS[trainer](model, 8192)
    learned = logits(model)
    assert not torch.equal(learned, logits(before))
    policy = finished(model, base, chosen)
    policy.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert {p.dtype for p in saved.parameters()} == {torch.float32}
    assert saved.state_dict().keys() == before.state_dict().keys()
    torch.testing.assert_close(logits(saved), logits(policy))
    tolerance = 1e-4 if chosen.weights == "float32" else 0.1 * learned.std().item()
    torch.testing.assert_close(logits(saved), learned, atol=tolerance, rtol=0)
    if chosen.method == "lora":  # what has no adapter is what it was, bit for bit, also where bfloat16 rounded it
        untouched = [name for name in weights(before) if "norm" in name or "embed" in name or "lm_head" in name]
        assert untouched
        assert all(torch.equal(saved.state_dict()[name], before.state_dict()[name]) for name in untouched)


def test_without_its_adapters_a_model_is_what_it_was(base: str) -> None:
    model = load_causal_lm(base, settings())
    start = logits(model)
    add_adapters(model, settings(**LORA).lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert has_adapters(model)
    assert not torch.equal(logits(model), start)
    with without_adapters(model):
        assert torch.equal(logits(model), start)
    assert not torch.equal(logits(model), start)
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


@pytest.mark.parametrize("changes", [{}, LORA])
def test_frozen_layers_do_not_learn(base: str, changes: dict[str, Any]) -> None:
    model = load_to_learn(base, settings(frozen_layers=2, **changes))
    frozen = [name for name, p in model.named_parameters() if ".layers.0." in name or ".layers.1." in name]
    assert not any(dict(model.named_parameters())[name].requires_grad for name in frozen)
    assert any(p.requires_grad for name, p in model.named_parameters() if ".layers.2." in name)
    with pytest.raises(ValueError, match="cannot freeze 7 layers of 6"):
        load_to_learn(base, settings(frozen_layers=7))


def peak(base: str, trainer: str, budget: int, **changes: Any) -> int:
    model = load_to_learn(base, settings(**changes))
    with LiveBytes() as live:
        TRAINERS[trainer](model, budget)
    return live.peak


@pytest.mark.parametrize("trainer", TRAINERS)
def test_memory_follows_the_micro_batch_and_recomputed_layers(base: str, trainer: str) -> None:
    # Adapters: the moments of the optimizer are small, so that the activations are what is seen.
    wide, narrow = (peak(base, trainer, budget, **LORA) for budget in (4096, 100))
    assert narrow < 0.35 * wide
    assert peak(base, trainer, 4096, **LORA, gradient_checkpointing=True) < 0.6 * wide


def online_step(model: Any, budget: int) -> None:
    """The forward and backward pass of a policy's own answers, with what measures them."""
    learner = Learner(model, 0, OnlineSettings.model_validate({"micro_batch_tokens": budget}), has_critic=False)
    rows = [row for pair in encode_pairs(ENCODER, PAIRS).pairs for row in pair.rows]
    learner.measured(rows, 64, 1.0)
    learner.reference_logprobs(rows, 64, 1.0)
    learner.now(rows, 64, 1.0).logprobs.sum().backward()


@pytest.mark.parametrize("trainer", [*TRAINERS, "online"])
def test_no_trainer_takes_memory_for_the_logits_of_all_tokens(
    tmp_path: Path, trainer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = {**TRAINERS, "online": online_step}[trainer], []
    for vocabulary in (264, 64 * 264):
        monkeypatch.setattr(head, "_BLOCK_LOGITS", 64 * 264)
        base = str(save_tiny_policy(tmp_path / str(vocabulary), vocab_size=vocabulary))
        model = load_to_learn(base, settings(**LORA))
        with LiveBytes() as live:
            run(model, 4096)
        found.append(live.peak)
    assert found[1] < 1.3 * found[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe", "bloom"])
def test_recomputed_layers_give_the_gradients_of_kept_ones(family: str, tmp_path: Path) -> None:
    base = str(save_tiny_policy(tmp_path, family))
    found = []
    for recompute in (False, True):
        model = load_to_learn(base, settings(gradient_checkpointing=recompute))
        model(input_ids=torch.arange(2, 42).view(2, 20), use_cache=False).logits.float().square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "torch sees no GPU"),
        ({"attention": "flash_attention_2"}, "needs a GPU"),
        ({**LORA, "quantised_base": "4bit"}, "quantised_base 4bit needs a GPU"),
        ({"shard": True}, "shard divides a model among the processes of torchrun, and this one is alone"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test is without")
def test_what_this_machine_cannot_do_is_refused_in_one_line(base: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableDevice, match=message) as refusal:
        load_to_learn(base, settings(**changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (LearnerSettings, {"quantised_base": "8bit"}, "quantised_base needs method lora"),
        (RewardHyperparameters, {"quantised_base": "8bit", "method": "lora"}, "quantised_base is for policies"),
        (PolicySettings, {"method": "lora", "online": {"weights": "lora"}}, "leave online.weights full"),
        (LearnerSettings, {"quantised_base": "8bit", "method": "lora", "shard": True}, "shard divides float weights"),
        (RewardHyperparameters, {"averaged_runs": 2, "shard": True}, "needs whole weights in each process"),
        (TrainSettings, {"reward": {"shard": True}}, "this trainer is one process"),
        (TrainSettings, {"policy": {"shard": True}}, "this trainer is one process"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.model_validate(changes)


def test_an_online_algorithm_divides_no_policy(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnusableDevice, match="an online algorithm samples with the whole policy"):
        load_for(base, settings(shard=True), "online", tokens=512, longest=128)


def test_the_attention_is_the_one_that_was_asked_for(base: str) -> None:
    eager, sdpa = (load_to_learn(base, settings(attention=kind)) for kind in ("eager", "sdpa"))
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    assert math.isclose(logits(eager).sum().item(), logits(sdpa).sum().item(), rel_tol=1e-4)
