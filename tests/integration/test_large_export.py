"""Large models: weights beside the graph, bases that stay as they are stored, and all precisions of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.reward_bases import encoder_for, exported, mixed_sequences, save_base, save_tokenizer
from transformers import AutoModel, Gemma3TextConfig

import rewardloop_reward.stored_weights as stored_weights
from rewardloop.formats.store import MODEL, ModelStore
from rewardloop_reward.stored_weights import keep_stored_weights
from rewardloop_reward.trunk import load_complete
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_trainer.commands import export as export_command
from rewardloop_trainer.export import weights
from rewardloop_trainer.export.graph import fill
from rewardloop_trainer.export.parity import PARITY_TOLERANCE, export_reward, parity, torch_logits
from rewardloop_trainer.export.precision import Precision, convert
from rewardloop_trainer.export.weights import load_graph, outside_of, write_graph
from rewardloop_trainer.reward.model import RewardModel

KINDS = ("bert", "llama", "gpt2")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph is large, and its weights are read in blocks of a few rows."""
    for kind in KINDS:
        exported(kind)  # other tests share these, as small graphs
    monkeypatch.setattr(weights, "INLINE_BYTES", 0)
    monkeypatch.setattr(weights, "_BLOCK_BYTES", 700)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every base is large, and so is every embedding."""
    monkeypatch.setattr(stored_weights, "LARGE_BYTES", 0)
    monkeypatch.setattr(stored_weights, "_LARGE_TABLE", 0)


def half_base(kind: str, directory: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A base in half precision in several shards."""
    whole = save_base(kind, directory / "whole")
    AutoModel.from_pretrained(whole, dtype=dtype).save_pretrained(directory / "half", max_shard_size="20KB")
    save_tokenizer(directory / "half")
    assert len(list((directory / "half").glob("*.safetensors"))) > 2
    return directory / "half"


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("kind", KINDS)
def test_weights_beside_the_graph_are_the_models_to_the_bit(kind: str, tmp_path: Path) -> None:
    export = exported(kind)
    tokenizer, layout = export.encoder.tokenizer, export.encoder.format
    export_reward(export.model, tokenizer, layout, tmp_path, adapters=export.adapters)

    inside = {i.name: i for i in onnx.load(str(export.onnx)).graph.initializer}
    written = onnx.load(str(tmp_path / MODEL), load_external_data=False).graph.initializer
    external = [i for i in written if i.data_location == onnx.TensorProto.EXTERNAL]
    assert len(external) >= 10  # GPT-2 has two embeddings and four matrices a layer
    for tensor in external:
        info = ExternalDataInfo(tensor)
        assert info.location == f"{MODEL}.data"
        assert info.offset is not None
        assert info.offset % 4096 == 0
        values = (tmp_path / info.location).read_bytes()[info.offset : info.offset + (info.length or 0)]
        assert values == numpy_helper.to_array(inside[tensor.name]).tobytes()
    assert {i.name for i in written} == set(inside)
    onnx.checker.check_model(str(tmp_path / MODEL))
    sequences = mixed_sequences(export.encoder, 16)
    assert parity(tmp_path / MODEL, export.model, sequences, export.encoder.format.pad) <= PARITY_TOLERANCE


@pytest.mark.usefixtures("outside")
def test_a_parents_large_graph_takes_new_weights(tmp_path: Path) -> None:
    export = exported("llama")
    graph = load_graph(export.onnx)
    assert graph is not None
    write_graph(graph, tmp_path / MODEL)
    again = load_graph(tmp_path / MODEL)
    assert again is not None
    assert fill(again, export.model, False, export.adapters)
    other = tmp_path / "child" / MODEL
    other.parent.mkdir()
    write_graph(again, other)
    sequences = mixed_sequences(export.encoder, 8)
    assert parity(other, export.model, sequences, export.encoder.format.pad) <= PARITY_TOLERANCE
    assert outside_of(other).read_bytes() == outside_of(tmp_path / MODEL).read_bytes()


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("precision", ["int8", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_large_graph_is_converted_as_a_small_one(
    kind: str, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = exported(kind)
    calibration = mixed_sequences(export.encoder, 10, seed=5)
    for name, limit in (("large", 0), ("small", 2**30)):
        monkeypatch.setattr(weights, "INLINE_BYTES", limit)
        graph = load_graph(export.onnx)
        assert graph is not None
        (tmp_path / name).mkdir()
        write_graph(graph, tmp_path / name / MODEL)
        convert(tmp_path / name / MODEL, precision, calibration, export.encoder.format.pad)
    found = {p: sorted(f.name for f in (tmp_path / p).iterdir()) for p in ("large", "small")}
    assert found == {"large": [MODEL, f"{MODEL}.data"], "small": [MODEL]}
    large, small = (onnx.load(str(tmp_path / name / MODEL)) for name in ("large", "small"))
    assert [n.op_type for n in large.graph.node] == [n.op_type for n in small.graph.node]
    values = {i.name: numpy_helper.to_array(i) for i in small.graph.initializer}
    for initialiser in large.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(initialiser), values[initialiser.name])


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_kept_as_stored_scores_as_in_float32(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = half_base(kind, tmp_path, dtype)
    with keep_stored_weights():
        kept = RewardModel.from_base(base, heads=2)
    whole = RewardModel.from_base(base, heads=2)
    assert {p.dtype for p in kept.trunk.parameters()} == {dtype}
    assert {p.dtype for p in whole.trunk.parameters()} == {torch.float32}
    encoder = encoder_for(kind)
    sequences = mixed_sequences(encoder, 12)
    expected = torch_logits(whole, sequences, encoder.format.pad)
    np.testing.assert_allclose(torch_logits(kept, sequences, encoder.format.pad), expected, atol=1e-6)
    assert {p.dtype for p in kept.trunk.parameters()} == {dtype}


@pytest.mark.usefixtures("large")
def test_buffers_that_are_not_stored_are_those_of_float32(tmp_path: Path) -> None:
    size = {"vocab_size": 99, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    model = AutoModel.from_config(Gemma3TextConfig(**size, **heads)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    with keep_stored_weights():
        kept, _ = load_complete(AutoModel, str(tmp_path))
    whole, _ = load_complete(AutoModel, str(tmp_path))
    found, expected = dict(kept.named_buffers()), dict(whole.named_buffers())
    assert any(float(b) != float(b.bfloat16()) for b in expected.values() if b.numel() == 1)
    assert found.keys() == expected.keys()
    for name, buffer in expected.items():
        assert torch.equal(found[name], buffer), name


@pytest.mark.usefixtures("large")
def test_a_checkpoint_with_a_weight_in_float32_is_loaded_in_float32(tmp_path: Path) -> None:
    base = half_base("llama", tmp_path)
    shard = sorted(base.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    first = next(iter(tensors))
    tensors[first] = tensors[first].float() + 1e-3
    save_file(tensors, shard, {"format": "pt"})
    with keep_stored_weights():
        model = RewardModel.from_base(base, heads=2)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.usefixtures("large", "outside")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "int8"])
def test_a_sharded_half_precision_base_is_exported_and_served(precision: str, tmp_path: Path) -> None:
    base, store = half_base("llama", tmp_path), tmp_path / "store"
    flags = ["--base", str(base), "--store", str(store), "--heads", "2", "--precision", precision]
    assert export_command.main(flags) == 0
    models = ModelStore(store)
    manifest, directory = models.manifest("reward", 1), models.fetch("reward", 1)
    assert f"{MODEL}.data" in manifest.files
    assert manifest.metrics["gate_parity"] <= PARITY_TOLERANCE
    assert "torch held the weights in bfloat16, and its layers computed in float32" in manifest.notes["parity"]
    if precision == "bfloat16":
        assert manifest.metrics["precision_parity"] <= PARITY_TOLERANCE
    with safe_open(directory / "torch" / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118 - no mapping
    assert [p.name for p in (store / "reward").iterdir()] == ["1"]

    served = SessionPool(models, Device("cpu", 1, spin=False), ServerMetrics()).load(manifest, directory)
    rows = mixed_sequences(encoder_for("llama"), 6)
    expected = torch_logits(RewardModel.load(directory / "torch"), rows, encoder_for("llama").format.pad)
    tolerance = {"float32": PARITY_TOLERANCE, "bfloat16": PARITY_TOLERANCE}.get(precision, 0.1)
    np.testing.assert_allclose(served.run(rows)[0], expected, atol=tolerance)
