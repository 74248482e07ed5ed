"""Exported graphs in other precisions: scores stay near, alone or among neighbours, with and without an adapter."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.reward_bases import Export, exported, mixed_sequences, trained_delta
from support.reward_graphs import write_sum_graph

from rewardloop.formats.store import ADAPTER, MODEL
from rewardloop.formats.text import Encoded, Turn
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.export.adapter import write_adapter
from rewardloop_trainer.export.graph import fill
from rewardloop_trainer.export.parity import (
    PARITY_TOLERANCE,
    graph_feeds,
    open_changed,
    open_session,
    run_session,
    run_trees,
)
from rewardloop_trainer.export.precision import (
    LEAST_PAIRS,
    JudgedPairs,
    UnconvertibleGraph,
    choose_precision,
    convert,
    graph_margins,
)
from rewardloop_trainer.export.weights import load_graph, write_graph
from rewardloop_trainer.reward.evaluate import pair_margins
from rewardloop_trainer.reward.examples import collate
from rewardloop_trainer.reward.model import RewardModel

Logits: TypeAlias = npt.NDArray[np.float32]
KINDS = ("bert", "llama", "gpt2")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=KINDS)
def export(request: pytest.FixtureRequest) -> Export:
    return exported(request.param)


def _converted(export: Export, directory: Path, precision: str, calibrated: bool = True) -> Path:
    path = directory / MODEL
    shutil.copy(export.onnx, path)
    calibration = mixed_sequences(export.encoder, 40, seed=5) if calibrated else ()
    convert(path, precision, calibration, export.encoder.format.pad)  # type: ignore[arg-type]
    return path


def _torch_logits(model: RewardModel, sequences: list[Encoded], pad: int) -> Logits:
    with torch.inference_mode():
        logits: Logits = torch.cat([model(*collate([s], pad)) for s in sequences]).numpy()
    return logits


def _operators(path: Path) -> set[str]:
    return {n.op_type for n in onnx.load(str(path)).graph.node}


def _is_near(found: Logits, expected: Logits, share: float) -> bool:
    """The root mean square of the difference is at most this share of the spread of what is expected."""
    return bool(np.sqrt(np.mean((found - expected) ** 2)) <= share * expected.std())


@pytest.mark.parametrize("calibrated", [True, False])
def test_logits_in_int8_are_near_torch_s(export: Export, tmp_path: Path, calibrated: bool) -> None:
    path = _converted(export, tmp_path, "int8", calibrated)
    assert "MatMulIntegerToFloat" in _operators(path)
    sequences, pad = mixed_sequences(export.encoder, 40, seed=1), export.encoder.format.pad
    found = run_session(open_session(path), sequences, pad)
    assert found.dtype == np.float32
    assert _is_near(found, _torch_logits(export.model, sequences, pad), 0.1)


def test_a_score_in_int8_depends_on_no_neighbour(export: Export, tmp_path: Path) -> None:
    path = _converted(export, tmp_path, "int8")
    sequences, pad = mixed_sequences(export.encoder, 24, seed=2), export.encoder.format.pad
    session = open_session(path)
    together = run_session(session, sequences, pad)
    alone = np.concatenate([run_session(session, [s], pad) for s in sequences])
    assert np.abs(together - alone).max() <= 1e-4


def test_a_tree_row_in_int8_scores_as_separate_rows(tmp_path: Path) -> None:
    export = exported("llama")
    path = _converted(export, tmp_path, "int8")
    encoder = export.encoder
    prompt = (Turn("user", "why is the sky blue please"),)
    texts = ("because light scatters", "good", "bad refund, würde", "blue sky " * 6)
    group = [encoder.pair(prompt, text) for text in texts]
    session = open_session(path)
    rows = run_session(session, group, encoder.format.pad)
    assert np.abs(run_trees(session, [group], encoder.format.pad) - rows).max() <= 1e-4


def test_an_adapter_in_float32_works_over_a_trunk_in_int8(export: Export, tmp_path: Path) -> None:
    path = _converted(export, tmp_path, "int8")
    delta = trained_delta(export.model)
    write_adapter(delta, tmp_path / ADAPTER)
    sequences, pad = mixed_sequences(export.encoder, 40, seed=3), export.encoder.format.pad
    expected, trunk = _torch_logits(delta, sequences, pad), _torch_logits(export.model, sequences, pad)
    found = run_session(open_session(path, tmp_path / ADAPTER), sequences, pad)
    assert _is_near(found, expected, 0.1)
    assert not _is_near(trunk, expected, 0.3)
    assert _is_near(run_session(open_session(path), sequences, pad), trunk, 0.1)


def test_a_graph_in_bfloat16_scores_as_the_model_with_rounded_matrices(export: Export, tmp_path: Path) -> None:
    path = _converted(export, tmp_path, "bfloat16")
    stored = {i.name: i.data_type for i in onnx.load(str(path)).graph.initializer}
    assert list(stored.values()).count(onnx.TensorProto.BFLOAT16) >= 10
    assert not any("norm" in name and kind == onnx.TensorProto.BFLOAT16 for name, kind in stored.items())
    rounded = copy.deepcopy(export.model)
    with torch.no_grad():
        for parameter in rounded.trunk.parameters():
            if parameter.dim() > 1 and parameter.nbytes > 1024:  # a smaller one stays as it is
                parameter.copy_(parameter.bfloat16())
    delta = trained_delta(rounded)
    write_adapter(delta, tmp_path / ADAPTER)
    sequences, pad = mixed_sequences(export.encoder, 16, seed=4), export.encoder.format.pad
    for model, adapter in ((rounded, None), (delta, tmp_path / ADAPTER)):
        found = run_session(open_session(path, adapter), sequences, pad)
        np.testing.assert_allclose(found, _torch_logits(model, sequences, pad), atol=PARITY_TOLERANCE)


def test_logits_in_float16_are_near_torch_s_and_of_the_same_type(export: Export, tmp_path: Path) -> None:
    path = _converted(export, tmp_path, "float16")
    half = [i for i in onnx.load(str(path)).graph.initializer if i.data_type == onnx.TensorProto.FLOAT16]
    assert len(half) > 10
    delta = trained_delta(export.model)
    write_adapter(delta, tmp_path / ADAPTER)
    sequences, pad = mixed_sequences(export.encoder, 16, seed=4), export.encoder.format.pad
    for model, adapter in ((export.model, None), (delta, tmp_path / ADAPTER)):
        found = run_session(open_session(path, adapter), sequences, pad)
        assert found.dtype == np.float32
        assert _is_near(found, _torch_logits(model, sequences, pad), 0.02)


def test_a_float16_graph_rounds_nothing_between_products_in_float32(export: Export, tmp_path: Path) -> None:
    path = _converted(export, tmp_path, "float16")
    graph = onnx.load(str(path)).graph
    to = {n.output[0]: n.attribute[0].i for n in graph.node if n.op_type == "Cast"}
    widened = [n for n in graph.node if n.op_type == "Cast" and n.attribute[0].i == TensorProto.FLOAT]
    assert widened
    assert not [n.name for n in widened if to.get(n.input[0]) == TensorProto.FLOAT16]
    (head,) = (n for n in graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1].startswith("heads.weight"))
    sequences, pad = mixed_sequences(export.encoder, 16, seed=4), export.encoder.format.pad
    pooled, logits = _read(path, head.input[0], sequences, pad)
    held = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    weight = held["heads.weight"] if head.op_type == "MatMul" else held["heads.weight"].T
    np.testing.assert_allclose(logits, pooled @ weight + held["heads.bias"], rtol=1e-6, atol=1e-6)
    assert (logits != logits.astype(np.float16)).mean() > 0.9


def test_what_is_between_the_products_of_an_adapter_may_exceed_float16(export: Export, tmp_path: Path) -> None:
    path = _converted(export, tmp_path, "float16")
    delta = trained_delta(export.model)
    sequences, pad = mixed_sequences(export.encoder, 16, seed=4), export.encoder.format.pad
    found = []
    for name, factor in (("plain", 1.0), ("shifted", 2.0**20)):
        with torch.no_grad():
            for parameter_name, parameter in delta.named_parameters():
                if "lora_" in parameter_name:
                    parameter.mul_(factor if "lora_A" in parameter_name else 1 / factor)
        write_adapter(delta, tmp_path / name)
        found.append(run_session(open_session(path, tmp_path / name), sequences, pad))
    np.testing.assert_array_equal(*found)  # factors that are powers of two round nothing


def test_angles_of_positions_are_not_rounded_in_float16(tmp_path: Path) -> None:
    export = exported("llama")
    sequences, pad = mixed_sequences(export.encoder, 16, seed=4), export.encoder.format.pad
    angles = []
    for path in (export.onnx, _converted(export, tmp_path, "float16")):
        cosine = next(n for n in onnx.load(str(path)).graph.node if n.op_type == "Cos")
        angles.append(_read(path, cosine.input[0], sequences, pad)[0])
    assert angles[0].max() > 100
    np.testing.assert_array_equal(*angles)


def _read(path: Path, name: str, sequences: list[Encoded], pad: int) -> tuple[Logits, Logits]:
    """A tensor of the graph, and the logits."""
    model = onnx.load(str(path))
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = open_changed(model, path)
    tensor, logits = session.run([name, "logits"], graph_feeds(session, sequences, pad))
    return tensor, logits


def test_a_graph_without_linear_layers_is_not_taken_for_one_in_int8(tmp_path: Path) -> None:
    write_sum_graph(tmp_path / MODEL)
    before = (tmp_path / MODEL).read_bytes()
    with pytest.raises(UnconvertibleGraph):
        convert(tmp_path / MODEL, "int8")
    assert (tmp_path / MODEL).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [MODEL]


def _pairs(count: int) -> list[Pair]:
    words = ["why", "sky", "blue", "refund", "please", "because", "light", "scatters", "good", "bad"]
    chance = np.random.default_rng(0)

    def text() -> str:
        return " ".join(chance.choice(words, size=chance.integers(1, 12)))

    return [Pair((Turn("user", f"{text()} {i}"),), f"{text()} a", f"{text()} b") for i in range(count)]


def test_a_conversion_that_agrees_replaces_the_graph(tmp_path: Path) -> None:
    export = exported("bert")
    shutil.copy(export.onnx, tmp_path / MODEL)
    pairs = _pairs(300)
    margins = pair_margins(export.model, export.encoder, pairs)
    clear = np.argsort(-np.abs(margins))[:LEAST_PAIRS]  # a random model's ties are no matter here
    pairs, margins = [pairs[i] for i in clear], margins[clear]
    calibration = mixed_sequences(export.encoder, 40, seed=5)
    choice = choose_precision(tmp_path, "int8", JudgedPairs(pairs, margins, export.encoder), calibration)
    assert (choice.precision, choice.reasons) == ("int8", ())
    assert choice.figures["precision_agreement"] >= 0.995
    assert choice.figures["precision_pairs"] == LEAST_PAIRS
    assert "MatMulIntegerToFloat" in _operators(tmp_path / MODEL)
    assert [p.name for p in tmp_path.iterdir()] == [MODEL]
    assert np.array_equal(np.sign(graph_margins(tmp_path / MODEL, pairs, export.encoder)), np.sign(margins))


@pytest.mark.parametrize("count", [LEAST_PAIRS, 20])
def test_a_conversion_that_is_not_proved_leaves_the_graph_as_it_was(tmp_path: Path, count: int) -> None:
    export = exported("bert")
    shutil.copy(export.onnx, tmp_path / MODEL)
    pairs = _pairs(count)
    other = -pair_margins(export.model, export.encoder, pairs)  # margins of a model that judges the other way round
    choice = choose_precision(tmp_path, "int8", JudgedPairs(pairs, other, export.encoder))
    assert choice.precision == "float32"
    assert choice.reasons
    assert (tmp_path / MODEL).read_bytes() == export.onnx.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [MODEL]


@pytest.mark.parametrize(
    ("kind", "scaled"), [("bert", ("intermediate.", "output.")), ("llama", ("up_proj", "down_proj"))]
)
def test_float16_is_taken_only_where_activations_keep_within_its_range(
    kind: str, scaled: tuple[str, str], tmp_path: Path
) -> None:
    """Activations within the feed-forward layers are made large, and the weights after them small."""
    export = exported(kind)
    model = copy.deepcopy(export.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for part, factor in zip(scaled, (2.0**16, 2.0**-16), strict=True):
                if f"{part}dense.weight" in name or f"{part}.weight" in name:
                    parameter.mul_(1.0 if "attention" in name else factor)
    taken = {}
    for case, weights in (("small", export.model), ("large", model)):
        directory = tmp_path / case
        directory.mkdir()
        graph = load_graph(export.onnx)
        assert graph is not None
        assert fill(graph, weights, False, export.adapters)
        write_graph(graph, directory / MODEL)
        before = (directory / MODEL).read_bytes()
        pairs = _pairs(300)
        margins = graph_margins(directory / MODEL, pairs, export.encoder)
        clear = np.argsort(-np.abs(margins))[:LEAST_PAIRS]
        heldout = JudgedPairs([pairs[i] for i in clear], margins[clear], export.encoder)
        taken[case] = choose_precision(directory, "float16", heldout)
        assert ((directory / MODEL).read_bytes() == before) == (case == "large")
        assert [p.name for p in directory.iterdir()] == [MODEL]
    assert (taken["small"].precision, taken["small"].reasons) == ("float16", ())
    assert 1 < taken["small"].figures["precision_largest_activation"] < 1000
    assert taken["large"].precision == "float32"
    (reason,) = taken["large"].reasons
    value = taken["large"].figures["precision_largest_activation"]
    assert value > 65504
    found = re.fullmatch(r"the tensor '(.+)' reaches (.+) on held-out pairs, beyond the 65504 of float16", reason)
    assert found is not None
    assert float(found[2]) == pytest.approx(value, rel=1e-5)
    assert any(found[1] in node.output for node in onnx.load(str(tmp_path / "large" / MODEL)).graph.node)
