"""The estimate of a run's memory is what the tensors of its step take, and a run that cannot fit is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.reward_bases import config as reward_config
from support.tiny_policies import FAMILIES
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from rewardloop_trainer.data.completions import Completion, token_logprobs
from rewardloop_trainer.learning.live_bytes import LiveBytes, bytes_of
from rewardloop_trainer.learning.lora_layers import add_adapters
from rewardloop_trainer.learning.memory_estimate import PROCESS_BYTES, check_memory, estimate_memory
from rewardloop_trainer.learning.model_load import UnusableDevice, prepare
from rewardloop_trainer.learning.settings import LearnerSettings

LORA = {"method": "lora", "lora": {"modules": "all"}}
# Without data, transformers repeats keys and values that heads share, which counts a tenth too much in real shapes.
EVEN = {family: {"num_key_value_heads": 4} for family in ("llama", "qwen3")}
WAYS: list[dict[str, Any]] = [
    *({}, {"weights": "bfloat16"}, {"computation": "bfloat16"}, LORA),
    *({"gradient_checkpointing": True}, {"frozen_layers": 1}),
]


def settings(changes: dict[str, Any]) -> LearnerSettings:
    return LearnerSettings.model_validate({"device": "cpu", **changes})


@pytest.mark.parametrize("changes", WAYS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "bert"])
def test_the_estimate_is_what_the_tensors_of_a_step_take(family: str, changes: dict[str, Any]) -> None:
    chosen = settings(changes)
    is_reward = family == "bert"
    config = (
        reward_config("bert", 4)
        if is_reward
        else AutoConfig.for_model(family, **{**FAMILIES[family], **EVEN.get(family, {})})
    )
    found = estimate_memory(config, chosen, "reward" if is_reward else "dpo", tokens=600, longest=150)

    model: Any = (AutoModel if is_reward else AutoModelForCausalLM).from_config(config).eval()
    prepare(model, model.base_model, chosen)
    if chosen.method == "lora":
        add_adapters(model, chosen.lora)
    ids = torch.zeros(4, 150, dtype=torch.long)
    learned = [p for p in model.parameters() if p.requires_grad]
    with LiveBytes() as live:
        for _ in range(2):
            if is_reward:
                mask = torch.ones_like(ids)
                mask[0, 100:] = 0
                loss = model(input_ids=ids, attention_mask=mask).last_hidden_state.float().mean()
            else:
                loss = -token_logprobs(model, [Completion((0,) * 150, 1)] * 4, 0)[0].mean()
            loss.backward()
    assert found.weights == pytest.approx(bytes_of((*model.parameters(), *model.buffers())), rel=0.01)
    assert found.gradients == bytes_of(learned)
    assert found.optimizer == 8 * sum(p.numel() for p in learned)
    if chosen.weights == "float32":  # the optimizer's temporary tensors are more than so small a model's step
        assert found.gradients + found.activations == pytest.approx(live.peak, rel=0.2)
    parts = (found.weights, found.gradients, found.optimizer, found.activations)
    assert found.total == sum(parts) + PROCESS_BYTES


def test_every_way_to_save_memory_lowers_the_estimate() -> None:
    config = AutoConfig.for_model("llama", **{**FAMILIES["llama"], "hidden_size": 256, "num_hidden_layers": 6})
    ways: list[dict[str, Any]] = [{}, LORA, {**LORA, "gradient_checkpointing": True}]
    totals = [estimate_memory(config, settings(way), "sft", tokens=4096, longest=160).total for way in ways]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)
    fewer = estimate_memory(config, settings({}), "sft", tokens=1024, longest=160).total
    assert fewer < totals[0]
    assert (
        estimate_memory(config, settings({}), "online", tokens=4096, longest=160).weights
        > 1.9 * estimate_memory(config, settings({}), "dpo", tokens=4096, longest=160).weights
    )


def test_a_process_that_has_a_part_of_the_model_gathers_a_layer_and_what_is_outside_of_the_layers() -> None:
    config = AutoConfig.for_model("llama", **{**FAMILIES["llama"], "hidden_size": 256, "num_hidden_layers": 6})
    whole = estimate_memory(config, settings({}), "sft", tokens=1024, longest=160, processes=2)
    shard = settings({"shard": True})
    found = {n: estimate_memory(config, shard, "sft", tokens=1024, longest=160, processes=n) for n in (1, 2, 4)}
    assert found[1] == whole
    for processes in (2, 4):
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(found[processes], part) == -(-getattr(whole, part) // processes)
    assert found[2].activations == found[4].activations

    model = AutoModelForCausalLM.from_config(config)
    layer = bytes_of(model.model.layers[0].parameters())
    outside = bytes_of(model.parameters()) - 6 * layer
    # Weights and gradients of what is outside; the layer that runs, the next one, and the gradients, which are copied.
    assert found[2].activations - whole.activations == 2 * outside + max(outside, 4 * layer)


def test_a_run_that_cannot_fit_is_refused_in_one_line_with_what_to_do() -> None:
    vast = {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 8, "num_attention_heads": 512}
    config = AutoConfig.for_model("llama", **{**FAMILIES["llama"], **vast, "num_key_value_heads": 512, "head_dim": 128})
    with pytest.raises(UnusableDevice, match=r"GiB of memory, and cpu has .* GiB for it: try method lora") as refusal:
        check_memory(config, settings({}), "dpo", tokens=512, longest=128)
    assert "\n" not in str(refusal.value)
    check_memory(AutoConfig.for_model("llama", **FAMILIES["llama"]), settings({}), "dpo", tokens=512, longest=128)
