"""Exported reward models give the torch model's logits, for every kind of trunk."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.reward_bases import config, exported, mixed_sequences, save_base

from rewardloop.formats.store import MODEL
from rewardloop.formats.text import Encoded
from rewardloop_trainer.export.errors import ParityError
from rewardloop_trainer.export.graph import fill
from rewardloop_trainer.export.parity import PARITY_TOLERANCE, check_parity, export_reward, parity, run_session
from rewardloop_trainer.export.weights import Graph, load_graph
from rewardloop_trainer.learning.settings import LoraSettings
from rewardloop_trainer.reward.lora import with_lora
from rewardloop_trainer.reward.model import RewardModel

KINDS = ["bert", "llama", "qwen2", "gpt2"]


def nudged(model: RewardModel, size: float = 0.05) -> RewardModel:
    """The same architecture with other weights, as after a training round."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_torch_on_200_texts_of_mixed_length(kind: str) -> None:
    export = exported(kind)
    sequences = mixed_sequences(export.encoder, 200)
    assert len({len(s.ids) for s in sequences}) > 50
    assert any(s.truncated for s in sequences)
    assert parity(export.onnx, export.model, sequences, export.encoder.format.pad) <= PARITY_TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_has_the_promised_files_and_graph(kind: str) -> None:
    directory = exported(kind).directory
    files = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    assert files == ["model.onnx", "tokenizer.json", "torch/config.json", "torch/heads.safetensors", *TRUNK]
    session = onnxruntime.InferenceSession(str(directory / MODEL), providers=["CPUExecutionProvider"])
    sizes = ["batch", "sequence"]
    encoder = {"input_ids": ("tensor(int64)", sizes), "attention_mask": ("tensor(int64)", sizes)}
    decoder = {
        "input_ids": ("tensor(int64)", sizes),
        "position_ids": ("tensor(int64)", sizes),
        "branches": ("tensor(int64)", ["branch_rows", "branch_columns"]),
        "ends": ("tensor(int64)", ["responses"]),
        "response_columns": ("tensor(int64)", ["shared_responses", "longest_response"]),
        "response_places": ("tensor(int64)", ["shared_places"]),
    }
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == (encoder if kind == "bert" else decoder)
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape[1]) == ("logits", "tensor(float)", 3)
    onnx.checker.check_model(str(directory / MODEL))


TRUNK = ["torch/model.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_torch_model_is_the_exported_one(kind: str) -> None:
    export = exported(kind)
    loaded = RewardModel.load(export.directory / "torch")
    sequences = mixed_sequences(export.encoder, 16, seed=3)
    assert parity(export.onnx, loaded, sequences, export.encoder.format.pad) <= PARITY_TOLERANCE
    for name, value in export.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_new_weights_go_into_the_parents_graph_quickly(kind: str, tmp_path: Path) -> None:
    export = exported(kind)
    child = nudged(export.model)
    sequences = mixed_sequences(export.encoder, 32, seed=4)
    pad = export.encoder.format.pad
    assert parity(export.onnx, child, sequences, pad) > 100 * PARITY_TOLERANCE  # the parent's weights are others

    started = time.perf_counter()
    export_reward(child, export.encoder.tokenizer, export.encoder.format, tmp_path, export.directory, export.adapters)
    assert time.perf_counter() - started < 3
    assert parity(tmp_path / MODEL, child, sequences, pad) <= PARITY_TOLERANCE


def _state(graph: Graph) -> tuple[bytes, dict[str, bytes]]:
    values = {name: weight.array().tobytes() for name, weight in graph.weights.items()}
    return graph.proto.SerializeToString(deterministic=True), values


def test_a_graph_does_not_take_weights_of_another_architecture(tmp_path: Path) -> None:
    export = exported("bert")
    graph = load_graph(export.onnx)
    assert graph is not None
    before = _state(graph)
    other_epsilon = RewardModel.from_base(save_base("bert", tmp_path), heads=3)
    other_epsilon.config.layer_norm_eps = 1e-3
    more_heads = RewardModel.from_base(tmp_path, heads=4)
    first_token = RewardModel.from_base(tmp_path, heads=3, pooling="cls")
    for other in (other_epsilon, more_heads, first_token):
        assert not fill(graph, other, False, export.adapters)
    assert not fill(graph, RewardModel.from_base(tmp_path, heads=3), True, export.adapters)
    assert not fill(graph, RewardModel.from_base(tmp_path, heads=3), False)
    assert _state(graph) == before
    assert fill(graph, RewardModel.from_base(tmp_path, heads=3), False, export.adapters)


def test_segment_ids_are_an_input_and_change_scores() -> None:
    export = exported("bert", segment_ids=True)
    sequences = mixed_sequences(export.encoder, 32)
    assert parity(export.onnx, export.model, sequences, export.encoder.format.pad) <= PARITY_TOLERANCE
    session = onnxruntime.InferenceSession(str(export.onnx), providers=["CPUExecutionProvider"])
    ids = np.array([sequences[0].ids])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    without = session.run(None, inputs)[0]
    inputs["token_type_ids"] = np.array([sequences[0].token_type_ids])
    assert np.abs(session.run(None, inputs)[0] - without).max() > 1e-3


def test_merged_adapters_are_exported(tmp_path: Path) -> None:
    export = exported("llama")
    model = with_lora(copy.deepcopy(export.model), LoraSettings(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    ids, mask = torch.arange(5, 25).unsqueeze(0), torch.ones(1, 20, dtype=torch.long)
    with torch.no_grad():
        adapted = model(ids, mask)
        assert (adapted - export.model(ids, mask)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="merge"):
        model.save(tmp_path)
    model.merge_lora()
    export_reward(model, export.encoder.tokenizer, export.encoder.format, tmp_path, export.directory, export.adapters)
    session = onnxruntime.InferenceSession(str(tmp_path / MODEL), providers=["CPUExecutionProvider"])
    logits = run_session(session, [Encoded(ids[0].tolist(), None, False)], 0)
    np.testing.assert_allclose(logits, adapted.numpy(), atol=PARITY_TOLERANCE)


def test_parity_sees_a_single_wrong_weight() -> None:
    export = exported("bert")
    wrong = copy.deepcopy(export.model)
    with torch.no_grad():
        wrong.heads.bias[1] += 1e-3
    sequences = mixed_sequences(export.encoder, 8)
    with pytest.raises(ParityError, match="differ from torch"):
        check_parity(export.onnx, wrong, sequences, export.encoder.format.pad)


def test_parity_of_a_graph_without_finite_logits_is_infinite(tmp_path: Path) -> None:
    export = exported("bert")
    broken = copy.deepcopy(export.model)
    with torch.no_grad():
        broken.heads.bias[0] = float("nan")
    export_reward(broken, export.encoder.tokenizer, export.encoder.format, tmp_path, export.directory, export.adapters)
    sequences = mixed_sequences(export.encoder, 4)
    assert parity(tmp_path / MODEL, broken, sequences, export.encoder.format.pad) == float("inf")


@pytest.mark.parametrize("kind", [*KINDS, "roberta"])
def test_training_and_export_read_the_same_position(kind: str, tmp_path: Path) -> None:
    """The pooled state, worked out here from the trunk's states of one unpadded sequence."""
    model = RewardModel.from_base(save_base(kind, tmp_path), heads=2)
    ids = torch.tensor([[5, 9, 7, 8, 30, 31]])
    padded = torch.cat((ids, torch.zeros(1, 3, dtype=torch.long)), 1)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    with torch.no_grad():
        found = model.trunk(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        states = found.last_hidden_state[0]
        is_encoder = config(kind).model_type in ("bert", "roberta")
        # The embeddings, and two thirds of two layers.
        read = (found.hidden_states[0][0], found.hidden_states[1][0], states)
        pooled = torch.cat([each.mean(0) for each in read]) if is_encoder else states[5]
        torch.testing.assert_close(model(padded, mask)[0], model.heads(pooled), atol=1e-5, rtol=1e-5)
