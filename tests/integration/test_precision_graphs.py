"""Exported graphs in other precisions: scores stay near, alone or among neighbours, with and without an adapter."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from support.reward_bases import Export, exported, mixed_sequences, trained_delta
from support.reward_graphs import write_sum_graph

from rewardloop.formats.store import ADAPTER, MODEL
from rewardloop.formats.text import Encoded, Turn
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.export.adapter import write_adapter
from rewardloop_trainer.export.parity import PARITY_TOLERANCE, open_session, run_session, run_trees
from rewardloop_trainer.export.precision import (
    LEAST_PAIRS,
    JudgedPairs,
    UnconvertibleGraph,
    choose_precision,
    convert,
    graph_margins,
)
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
