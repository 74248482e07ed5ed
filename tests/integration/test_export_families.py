"""Families of transformers as reward models: exported, served, and equal to the family's own class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.families.build import save_reward
from support.families.shown import TOLERANCE, show_reward
from support.families.table import DECODERS, FAMILIES, Family
from transformers import AutoModel, AutoModelForSequenceClassification

import rewardloop_reward.decoder_rows as rows
from rewardloop.formats.graphs.inputs import decoder_rows
from rewardloop.formats.text import Encoded
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.export.experts import dense_experts
from rewardloop_trainer.export.graph import graph_of
from rewardloop_trainer.export.parity import open_session, run_trees
from rewardloop_trainer.export.weights import write_graph
from rewardloop_trainer.reward.heads.choice import HeadChoice
from rewardloop_trainer.reward.model import RewardModel

BY_NAME = {family.name: family for family in FAMILIES}
# One of each way: plain, rotations that rows share, a mask alone, a window, and eager attention with soft caps.
QUICK = [BY_NAME[name] for name in ("DistilBERT", "NomicBERT", "OPT", "Mistral", "Gemma 2")]
# One of each other way: how texts are paired, heads are read, positions are counted, masks are made and layers are
# built, and each kind of refusal. FAMILIES=all takes every one, as `tests/bench/families.py` does.
OTHER_WAYS = [
    *("RoBERTa", "ELECTRA", "DeBERTa-v3", "MPNet", "BigBird", "ConvBERT", "Longformer", "ModernBERT", "Jina v3"),
    *("Llama 3", "Ministral", "Qwen3", "Mixtral", "DeepSeek-V3", "Gemma 3 (multimodal)", "Phi-3 (longrope)"),
    *("GPT-2", "GPT-NeoX", "Falcon", "BLOOM", "MPT", "gpt-oss", "Cohere 2", "Llama 4", "Qwen3-Next", "Mamba"),
]
EVERY = os.environ.get("FAMILIES") == "all"
OTHERS = [family for family in FAMILIES if family not in QUICK and (EVERY or family.name in OTHER_WAYS)]
SERVED = [family for family in DECODERS if not family.reward and (EVERY or family in [*QUICK, *OTHERS])]
EXPERTS = ["Mixtral", "Qwen2-MoE", "Qwen3-MoE", "PhiMoE", "OLMoE", "gpt-oss", "DeepSeek-V3"]


def names(families: list[Family]) -> list[str]:
    return [family.name for family in families]


def check(family: Family, directory: Path) -> None:
    found = show_reward(family, directory)
    if family.reward:
        assert family.reward in found.refusal
        assert "\n" not in found.refusal
    else:
        assert found.is_right, found


@pytest.mark.parametrize("family", QUICK, ids=names(QUICK))
def test_a_family_scores_as_its_own_class(family: Family, tmp_path: Path) -> None:
    check(family, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("family", OTHERS, ids=names(OTHERS))
def test_each_other_way_scores_as_its_own_class_or_is_refused(family: Family, tmp_path: Path) -> None:
    check(family, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("family", SERVED, ids=names(SERVED))
def test_a_decoder_scores_answers_that_share_a_row_as_each_alone(family: Family, tmp_path: Path) -> None:
    """Loading checks it, with windows that are shorter than the sequences."""
    assert RewardModel.from_base(save_reward(family, tmp_path), heads=1, choice=HeadChoice(new_heads=True)).is_decoder


def test_a_decoder_whose_windows_are_not_masked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_reward(BY_NAME["Mistral"], tmp_path)
    monkeypatch.setattr(rows, "_layer_kinds", lambda config: ("full_attention",))
    monkeypatch.setitem(rows._SIZES, "full_attention", "sliding_window")
    with pytest.raises(UnusableBase, match="mistral scores two answers in one row differently from each alone"):
        RewardModel.from_base(tmp_path)


@pytest.mark.parametrize("name", ["Mistral", "Gemma 2"])
def test_answers_in_one_row_see_as_far_as_a_window_that_is_shorter_than_the_prompt(name: str, tmp_path: Path) -> None:
    base = save_reward(BY_NAME[name], tmp_path / "base")
    write_graph(graph_of(RewardModel.from_base(base, heads=1), False), tmp_path / "model.onnx")
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(5, 90, (70,), generator=generator).tolist()
    answers = [torch.randint(5, 90, (size,), generator=generator).tolist() for size in (30, 45)]
    group = [Encoded([*prompt, *answer], None, False, len(answer), len(prompt)) for answer in answers]
    session = open_session(tmp_path / "model.onnx")
    together = run_trees(session, [group], 0)[:, 0]
    whole: Any = AutoModelForSequenceClassification.from_pretrained(base).eval()
    whole.config.pad_token_id = None

    def expected() -> Any:
        with torch.no_grad():
            return np.array([float(whole(input_ids=torch.tensor([each.ids])).logits) for each in group])

    windowed = expected()
    np.testing.assert_allclose(together, windowed, atol=TOLERANCE)
    one_a_row = session.run(None, decoder_rows(group, 115, 0))[0][:, 0]
    np.testing.assert_allclose(one_a_row, windowed, atol=TOLERANCE)
    whole.config.sliding_window = 512
    assert np.abs(expected() - windowed).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", EXPERTS)
def test_all_experts_at_once_give_what_the_chosen_ones_give(name: str, tmp_path: Path) -> None:
    trunk: Any = AutoModel.from_pretrained(save_reward(BY_NAME[name], tmp_path), experts_implementation="eager").eval()
    ids = torch.arange(5, 35).reshape(2, 15)
    with torch.no_grad():
        expected = trunk(input_ids=ids).last_hidden_state
        with dense_experts(trunk.config):
            found = trunk(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
