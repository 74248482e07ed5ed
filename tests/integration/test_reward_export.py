"""A candidate's files come with the proof that they score as it does, over a graph in any precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.reward_bases import WORDS, Export, exported, mixed_sequences, trained_delta

from rewardloop.formats.store import ADAPTER, MODEL, Manifest
from rewardloop.formats.text import Turn
from rewardloop_trainer.data.length_share import NO_SHARE
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.export.candidate import Exported, Trial, export_candidate, is_delta
from rewardloop_trainer.export.parity import PARITY_TOLERANCE
from rewardloop_trainer.export.precision import LEAST_PAIRS, convert, graph_margins
from rewardloop_trainer.reward.evaluate import pair_margins
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import RewardStart, TrunkFiles

PAIRS = [
    Pair((Turn("user", f"{WORDS[i % 13]} {i}"),), f"{WORDS[i % 7]} {i}", f"{WORDS[i % 5]} {WORDS[i % 11]}")
    for i in range(LEAST_PAIRS)
]


def start_on(trunk: Export, precision: str = "float32") -> RewardStart:
    manifest = Manifest("reward", version="1", digest="d", precision=precision)
    return RewardStart(trunk.model, trunk.encoder, "base", trunk.directory, TrunkFiles(manifest, trunk.directory))


def trial(model: RewardModel, export: Export, pairs: list[Pair]) -> Trial:
    sequences = mixed_sequences(export.encoder, 12)
    return Trial(
        export.encoder,
        sequences,
        pairs,
        lambda: pair_margins(model, export.encoder, pairs, NO_SHARE),
        sequences,
        NO_SHARE,
    )


DELTA = RewardHyperparameters.model_validate({"method": "lora", "delta": True})


def test_a_round_makes_a_delta_where_the_graph_takes_its_layers() -> None:
    start = start_on(exported("bert"))
    assert is_delta(start, DELTA)
    assert not is_delta(start, RewardHyperparameters.model_validate({"method": "lora"}))
    more = DELTA.model_copy(update={"lora": DELTA.lora.model_copy(update={"modules": "all"})})
    assert not is_delta(start, more)
    assert not is_delta(RewardStart(start.model, start.encoder, "base", None, None), DELTA)


def test_a_delta_is_proved_over_its_trunks_graph(tmp_path: Path) -> None:
    trunk = exported("llama")
    delta = trained_delta(trunk.model)
    found = export_candidate(delta, start_on(trunk), DELTA, trial(delta, trunk, []), tmp_path / "version")
    assert found.parity <= PARITY_TOLERANCE
    assert (found.precision, found.reasons) == ("float32", ())
    assert (tmp_path / "version" / ADAPTER).exists()
    assert Exported.from_json(found.to_json()) == found


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.long
def test_a_delta_over_an_int8_graph_is_judged_as_a_change_of_precision(kind: str, tmp_path: Path) -> None:
    whole = exported(kind)
    shutil.copytree(whole.directory, tmp_path / "trunk")
    trunk = Export(whole.model, whole.encoder, tmp_path / "trunk", whole.adapters)
    convert(trunk.onnx, "int8", mixed_sequences(trunk.encoder, 12), trunk.encoder.format.pad)
    delta = trained_delta(trunk.model)
    start = start_on(trunk, "int8")
    assert is_delta(start, DELTA)
    found = export_candidate(delta, start, DELTA, trial(delta, trunk, PAIRS), tmp_path / "version")
    assert found.parity <= PARITY_TOLERANCE
    assert found.precision == "int8"
    agreement = found.figures["precision_agreement"]
    assert agreement > 0.9
    assert (agreement < 0.995) == any("over a graph in int8" in reason for reason in found.reasons)
    converted = graph_margins(trunk.onnx, PAIRS, trunk.encoder, adapter=tmp_path / "version" / ADAPTER)
    alone = graph_margins(trunk.onnx, PAIRS, trunk.encoder)
    wanted = pair_margins(delta, trunk.encoder, PAIRS, NO_SHARE)
    assert abs(converted - wanted).mean() < 0.2 * abs(alone - wanted).mean()
    few = export_candidate(delta, start, DELTA, trial(delta, trunk, PAIRS[:5]), tmp_path / "few")
    assert any("5 held-out pairs" in reason for reason in few.reasons)


@pytest.mark.long
def test_a_delta_over_a_float16_graph_is_refused_if_its_activations_exceed_the_range(tmp_path: Path) -> None:
    whole = exported("bert")
    shutil.copytree(whole.directory, tmp_path / "trunk")
    trunk = Export(whole.model, whole.encoder, tmp_path / "trunk", whole.adapters)
    convert(trunk.onnx, "float16", pad=trunk.encoder.format.pad)
    reasons = []
    for name, factor in (("small", 1.0), ("large", 1e6)):
        delta = trained_delta(trunk.model)
        with torch.no_grad():
            for parameter_name, parameter in delta.named_parameters():
                parameter.mul_(factor if "lora_B" in parameter_name else 1.0)
        found = export_candidate(delta, start_on(trunk, "float16"), DELTA, trial(delta, trunk, PAIRS), tmp_path / name)
        assert (found.figures["precision_largest_activation"] > 65504) == (name == "large")
        reasons.append([reason for reason in found.reasons if "beyond the 65504 of float16" in reason])
    assert reasons[0] == []
    assert reasons[1][0].startswith("over a graph in float16: the tensor '")


def test_a_whole_version_takes_the_wanted_precision_or_says_why_not(tmp_path: Path) -> None:
    trunk = exported("bert")
    wanted = RewardHyperparameters.model_validate({"precision": "int8"})
    few = export_candidate(trunk.model, start_on(trunk), wanted, trial(trunk.model, trunk, PAIRS[:5]), tmp_path / "few")
    assert (few.precision, few.reasons) == ("float32", ())
    assert "int8 was refused" in few.notes["precision"]
    assert few.parity <= PARITY_TOLERANCE
    all_pairs = trial(trunk.model, trunk, PAIRS)
    found = export_candidate(trunk.model, start_on(trunk), wanted, all_pairs, tmp_path / "all")
    assert found.parity <= PARITY_TOLERANCE
    assert (found.precision == "int8") == (not found.notes)
    assert ((tmp_path / "all" / MODEL).stat().st_size < trunk.onnx.stat().st_size) == (found.precision == "int8")
