"""Encoders whose attention takes the number of each row's tokens score as with the mask that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from support.families.build import save_reward
from support.families.table import FAMILIES
from support.reward_bases import save_base
from transformers import AutoModelForSequenceClassification

from rewardloop.formats.text import Encoded
from rewardloop_trainer.export import graph as export_graph
from rewardloop_trainer.export.graph import graph_of
from rewardloop_trainer.export.parity import open_session, run_session
from rewardloop_trainer.export.weights import write_graph
from rewardloop_trainer.reward.model import Pooling, RewardModel

BY_NAME = {family.name: family for family in FAMILIES}
TOLERANCE = 1e-5
# These keep their masks: their layers have windows, share keys between heads, or make queries, keys and values at once.
WITH_MASKS = ["ModernBERT", "EuroBERT"]
QUICK = ["BERT", "RoBERTa", "DistilBERT", "NomicBERT", "ModernBERT"]
OTHERS = ["XLM-RoBERTa", "CamemBERT", "data2vec-text", "ALBERT", "ELECTRA", "EuroBERT", "GTE", "Jina v3"]
OTHERS += ["ERNIE"]
LENGTHS = (64, 5, 17, 40, 64, 1)


def sequences(lengths: Sequence[int] = LENGTHS) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [Encoded(torch.randint(5, 90, (n,), generator=generator).tolist(), None, False) for n in lengths]


def attention(path: Path) -> list[onnx.NodeProto]:
    model = onnx.load(str(path), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    held = {initializer.name for initializer in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "Attention" and node.input[0] not in held]


def exported(model: RewardModel, path: Path) -> Path:
    write_graph(graph_of(model, False), path)
    return path


def with_masks(model: RewardModel, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The graph as earlier exports have it."""
    with monkeypatch.context() as patched:
        patched.setattr(export_graph, "take_lengths", lambda graph: 0)
        return exported(model, path)


def logits(path: Path, rows: list[Encoded]) -> npt.NDArray[np.float32]:
    return run_session(open_session(path), rows, 0)


def of_transformers(base: Path, rows: list[Encoded]) -> npt.NDArray[np.float32]:
    """The logits of the family's own class, of each sequence alone."""
    whole: Any = AutoModelForSequenceClassification.from_pretrained(base).eval()
    with torch.no_grad():
        return np.concatenate([whole(input_ids=torch.tensor([row.ids])).logits.numpy() for row in rows])


def compare(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_reward(BY_NAME[name], tmp_path / "base")
    model = RewardModel.from_base(base, heads=1)
    path = exported(model, tmp_path / "model.onnx")
    nodes = attention(path)
    masked = [node for node in nodes if len(node.input) == 4]
    assert nodes
    assert len(masked) == (len(nodes) if name in WITH_MASKS else 0)
    assert all(node.input[6] and not any(node.input[3:6]) for node in nodes if node not in masked)
    rows = sequences()
    together = logits(path, rows)
    expected = of_transformers(base, rows)
    np.testing.assert_allclose(together, expected, atol=TOLERANCE)
    np.testing.assert_allclose(np.concatenate([logits(path, [row]) for row in rows]), expected, atol=TOLERANCE)
    before = with_masks(model, tmp_path / "masks.onnx", monkeypatch)
    assert all(len(node.input) == 4 for node in attention(before))
    np.testing.assert_allclose(together, logits(before, rows), atol=TOLERANCE)


@pytest.mark.parametrize("name", QUICK)
def test_an_encoder_by_lengths_scores_as_its_own_class_and_as_with_a_mask(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(name, tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_other_encoders_by_lengths_score_as_their_own_classes_and_as_with_a_mask(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(name, tmp_path, monkeypatch)


@pytest.mark.parametrize("pooling", ["mean", "layers", "cls"])
def test_every_head_reads_the_same_by_lengths(
    pooling: Pooling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RewardModel.from_base(save_base("bert", tmp_path / "base"), heads=3, pooling=pooling).eval()
    path = exported(model, tmp_path / "model.onnx")
    assert all(node.input[6] for node in attention(path))
    before = with_masks(model, tmp_path / "masks.onnx", monkeypatch)
    rows = sequences()
    assert logits(path, rows).shape == (len(rows), 3)
    np.testing.assert_allclose(logits(path, rows), logits(before, rows), atol=TOLERANCE)
    with torch.no_grad():
        alone = np.concatenate([model(torch.tensor([r.ids]), torch.ones(1, len(r.ids)).long()).numpy() for r in rows])
    np.testing.assert_allclose(logits(path, rows), alone, atol=TOLERANCE)
