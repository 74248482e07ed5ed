"""The torch engine gives the logits of the graph, which is the contract, on every kind of run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families.build import save_reward
from support.families.shown import export_version
from support.families.table import FAMILIES
from support.reward_bases import encoder_for, exported, save_base, trained_delta
from support.torch_versions import (
    difference,
    graph_pool,
    grouped,
    load,
    publish,
    publish_export,
    publish_torch_delta,
    torch_pool,
)

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.export.parity import export_reward
from rewardloop_trainer.reward.model import Pooling, RewardModel

TOLERANCE = 1e-5
BY_NAME = {family.name: family for family in FAMILIES}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.mark.parametrize(
    ("kind", "segments"),
    [("bert", False), ("bert", True), ("roberta", False), ("llama", False), ("qwen2", False), ("gpt2", False)],
)
def test_every_run_has_the_logits_of_the_graph(kind: str, segments: bool, store: ModelStore) -> None:
    manifest = publish_export(store, exported(kind, segments))
    one, other = load(torch_pool(store), store, manifest), load(graph_pool(store), store, manifest)
    assert one.signature == other.signature
    assert difference(one, other, grouped(260, segments=segments)) <= TOLERANCE


@pytest.mark.parametrize("kind", ["bert", "llama", "qwen2", "gpt2"])
def test_deltas_over_one_trunk_have_the_logits_of_their_graph(kind: str, store: ModelStore) -> None:
    export = exported(kind)
    manifest = publish_export(store, export)
    deltas = [
        publish_torch_delta(store, manifest, export.encoder, trained_delta(export.model, seed=seed)) for seed in (1, 2)
    ]
    by_torch, by_graph, rows = torch_pool(store), graph_pool(store), grouped(260)
    loaded = [(load(by_torch, store, each), load(by_graph, store, each)) for each in (*deltas, manifest)]
    assert by_torch.sessions == 1
    for one, other in (*loaded, *reversed(loaded)):
        assert difference(one, other, rows) <= TOLERANCE
    assert difference(loaded[0][0], loaded[1][1], rows) > 100 * TOLERANCE


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_words_and_phrases_count_as_in_the_graph(kind: str, store: ModelStore, tmp_path: Path) -> None:
    model, encoder = RewardModel.from_base(save_base(kind, tmp_path / "base"), heads=3), encoder_for(kind)
    with torch.no_grad():
        for table in (model.add_words(), model.add_phrases()):
            table.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    export_reward(model, encoder.tokenizer, encoder.format, tmp_path / "version", adapters=exported(kind).adapters)
    manifest = publish(store, tmp_path / "version", encoder, 3)
    delta = publish_torch_delta(store, manifest, encoder, trained_delta(model))
    by_torch, by_graph = torch_pool(store), graph_pool(store)
    for each in (manifest, delta):
        one, other = load(by_torch, store, each), load(by_graph, store, each)
        # Sums of 60 weights of 0.5, in another order.
        assert difference(one, other, grouped(260)) <= 2 * TOLERANCE


@pytest.mark.parametrize("pooling", ["mean", "layers", "cls"])
def test_every_pooling_of_an_encoder_is_that_of_the_graph(pooling: Pooling, store: ModelStore, tmp_path: Path) -> None:
    model = RewardModel.from_base(save_base("bert", tmp_path / "base"), heads=2, pooling=pooling)
    encoder = encoder_for("bert")
    export_reward(model, encoder.tokenizer, encoder.format, tmp_path / "version")
    manifest = publish(store, tmp_path / "version", encoder, 2)
    one, other = load(torch_pool(store), store, manifest), load(graph_pool(store), store, manifest)
    assert difference(one, other, grouped(260)) <= TOLERANCE


# Windows that are shorter than the rows, biases on distances, experts, attention of their own, no classifier.
QUICK = ["BERT", "DistilBERT", "ModernBERT", "DeBERTa-v3", "Mistral", "Qwen2 with a window", "Qwen3", "Gemma 3"]
QUICK += ["BLOOM"]


def compare(name: str, tmp_path: Path) -> None:
    base = save_reward(BY_NAME[name], tmp_path / "base")
    found = export_version(base, tmp_path / "store", "reward", "--heads", "1")
    assert not isinstance(found, str), found
    manifest, _ = found
    store = ModelStore(tmp_path / "store")
    one, other = load(torch_pool(store), store, manifest), load(graph_pool(store), store, manifest)
    segments = bool(one.encoder.format.segment_ids)
    assert difference(one, other, grouped(90, segments=segments)) <= TOLERANCE


@pytest.mark.parametrize("name", QUICK)
def test_families_have_the_logits_of_their_graphs(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", [each.name for each in FAMILIES if not each.reward and each.name not in QUICK])
def test_other_families_have_the_logits_of_their_graphs(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path)
