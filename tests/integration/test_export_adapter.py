"""A trunk's graph with an adapter gives the logits of the torch model with the same adapters on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.reward_bases import exported, mixed_sequences, trained_delta
from transformers import AutoModel, DistilBertConfig

from rewardloop.formats.store import ADAPTER
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.export.adapter import export_delta, write_adapter
from rewardloop_trainer.export.adapter_inputs import adapted_modules
from rewardloop_trainer.export.feeds import decoder_feeds, encoder_feeds
from rewardloop_trainer.export.parity import PARITY_TOLERANCE, export_reward, open_session, parity, run_session
from rewardloop_trainer.learning.linear_modules import linear_modules
from rewardloop_trainer.learning.settings import LoraSettings
from rewardloop_trainer.reward.examples import collate
from rewardloop_trainer.reward.lora import load_delta, with_lora
from rewardloop_trainer.reward.model import RewardModel

KINDS = ["bert", "llama", "qwen2", "gpt2"]
Modules = Literal["query_value", "attention", "all"]


@pytest.mark.parametrize(("kind", "modules"), [*((kind, "query_value") for kind in KINDS), ("gpt2", "all")])
def test_graph_and_adapter_give_the_logits_of_trunk_and_lora(kind: str, modules: Modules, tmp_path: Path) -> None:
    trunk = exported(kind, adapters=modules)
    pad = trunk.encoder.format.pad
    delta = trained_delta(trunk.model, modules)
    sequences = mixed_sequences(trunk.encoder, 24)
    write_adapter(delta, tmp_path / ADAPTER)

    assert parity(trunk.onnx, delta, sequences, pad, adapter=tmp_path / ADAPTER) <= PARITY_TOLERANCE
    assert parity(trunk.onnx, delta, sequences, pad) > 100 * PARITY_TOLERANCE  # without it the trunk's scores
    assert parity(trunk.onnx, trunk.model, sequences, pad) <= PARITY_TOLERANCE

    delta.merge_lora()
    out = tmp_path / "whole"
    export_reward(delta, trunk.encoder.tokenizer, trunk.encoder.format, out, trunk.directory, trunk.adapters)
    merged = run_session(open_session(out / "model.onnx"), sequences, pad)
    adapted = run_session(open_session(trunk.onnx, tmp_path / ADAPTER), sequences, pad)
    np.testing.assert_allclose(adapted, merged, atol=PARITY_TOLERANCE)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_adapters_of_different_ranks_run_on_one_session(kind: str, tmp_path: Path) -> None:
    trunk = exported(kind)
    pad = trunk.encoder.format.pad
    sequences = mixed_sequences(trunk.encoder, 8)
    session = onnxruntime.InferenceSession(str(trunk.onnx), providers=["CPUExecutionProvider"])
    alone = run_session(session, sequences, pad)
    for rank in (1, 8):
        model = with_lora(copy.deepcopy(trunk.model), LoraSettings(rank=rank)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        write_adapter(model, tmp_path / ADAPTER)
        loaded = onnxruntime.LoraAdapter()
        loaded.Load(str(tmp_path / ADAPTER))
        options = onnxruntime.RunOptions()
        options.add_active_adapter(loaded)
        with torch.inference_mode():
            expected = torch.cat([model(*collate([s], pad)) for s in sequences]).numpy()
        feeds = decoder_feeds(sequences, pad) if trunk.model.is_decoder else encoder_feeds(sequences, pad)
        np.testing.assert_allclose(session.run(None, feeds, options)[0], expected, atol=PARITY_TOLERANCE)
    np.testing.assert_allclose(run_session(session, sequences, pad), alone, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_inputs_are_optional_and_named(kind: str) -> None:
    trunk = exported(kind)
    modules = linear_modules(trunk.model.trunk, "query_value")
    session = onnxruntime.InferenceSession(str(trunk.onnx), providers=["CPUExecutionProvider"])
    optional = {i.name for i in session.get_overridable_initializers()}
    assert optional == {"heads.weight", "heads.bias", *(f"lora.{m}.{x}" for m in modules for x in "AB")}
    assert adapted_modules(trunk.onnx) == set(modules)
    onnx.checker.check_model(str(trunk.onnx))


def test_a_delta_is_small_and_goes_back_on_its_trunk(tmp_path: Path) -> None:
    trunk = exported("bert")
    delta = trained_delta(trunk.model)
    export_delta(delta, trunk.encoder.tokenizer, tmp_path)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [ADAPTER, "tokenizer.json", "torch/heads.safetensors", "torch/lora.safetensors"]
    again = load_delta(RewardModel.load(trunk.directory / "torch"), tmp_path / "torch")
    ids, mask = torch.arange(5, 25).unsqueeze(0), torch.ones(1, 20, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(again(ids, mask), delta(ids, mask))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in delta.named_parameters() if p.requires_grad
    }
    with pytest.raises(UnusableBase):
        load_delta(RewardModel.load(trunk.directory / "torch"), tmp_path)
    with pytest.raises(ValueError, match="no adapters"):
        export_delta(trunk.model, trunk.encoder.tokenizer, tmp_path / "none")


def test_a_graph_without_adapter_inputs_has_the_same_logits(tmp_path: Path) -> None:
    trunk = exported("bert")
    export_reward(trunk.model, trunk.encoder.tokenizer, trunk.encoder.format, tmp_path, trunk.directory)
    plain = open_session(tmp_path / "model.onnx")
    assert adapted_modules(tmp_path / "model.onnx") == set()
    assert {i.name for i in plain.get_inputs()} == {i.name for i in open_session(trunk.onnx).get_inputs()}
    sequences, pad = mixed_sequences(trunk.encoder, 8), trunk.encoder.format.pad
    np.testing.assert_allclose(
        run_session(open_session(trunk.onnx), sequences, pad), run_session(plain, sequences, pad), atol=1e-6
    )


def test_new_weights_go_into_a_parents_graph_with_its_adapter_inputs(tmp_path: Path) -> None:
    trunk = exported("llama")
    child = copy.deepcopy(trunk.model)
    with torch.no_grad():
        for parameter in child.parameters():
            parameter.add_(0.05)
    export_reward(child, trunk.encoder.tokenizer, trunk.encoder.format, tmp_path, trunk.directory, trunk.adapters)
    sequences = mixed_sequences(trunk.encoder, 8)
    assert parity(tmp_path / "model.onnx", child, sequences, trunk.encoder.format.pad) <= PARITY_TOLERANCE
    assert adapted_modules(tmp_path / "model.onnx") == set(trunk.adapters)


@pytest.mark.parametrize("kind", [*KINDS, "roberta", "distilbert"])
def test_query_and_value_are_found_in_every_kind_of_trunk(kind: str) -> None:
    if kind == "distilbert":
        trunk = AutoModel.from_config(DistilBertConfig(vocab_size=9, dim=8, n_layers=2, n_heads=2, hidden_dim=8))
    else:
        trunk = exported(kind).model.trunk
    chosen = {m: linear_modules(trunk, m) for m in ("none", "query_value", "attention", "all")}  # type: ignore[arg-type]
    layers = 2
    assert len(chosen["none"]) == 0
    assert len(chosen["query_value"]) == layers * (1 if kind == "gpt2" else 2)
    assert len(chosen["attention"]) == layers * (2 if kind == "gpt2" else 4)
    assert set(chosen["query_value"]) < set(chosen["attention"]) < set(chosen["all"])
