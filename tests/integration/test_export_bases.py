"""Which Hugging Face directories become reward models, and from what their heads start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.reward_bases import config, save_base
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    PretrainedConfig,
    T5Config,
    T5Model,
)

from rewardloop_trainer.data.base_text import UnusableBase, load_tokenizer, longest_input
from rewardloop_trainer.reward.model import RewardModel

IDS = torch.tensor([[5, 9, 7, 8, 30, 31], [6, 7, 40, 0, 0, 0]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama", "qwen2", "gpt2"])
def test_every_head_starts_as_the_classifier_of_a_one_label_base(kind: str, tmp_path: Path) -> None:
    chosen = (
        DistilBertConfig(vocab_size=260, dim=32, n_layers=2, n_heads=2, hidden_dim=64, pad_token_id=0)
        if kind == "distilbert"
        else config(kind)
    )
    chosen.num_labels = 1
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(chosen).eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = classifier(input_ids=IDS, attention_mask=MASK).logits
    classifier.save_pretrained(tmp_path / "base")

    model = RewardModel.from_base(tmp_path / "base", heads=3)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, MASK), expected.expand(-1, 3), atol=1e-5, rtol=1e-5)

    model.save(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(RewardModel.load(tmp_path / "saved")(IDS, MASK), model(IDS, MASK))


def test_new_heads_have_the_scale_of_the_recipe_and_no_bias(tmp_path: Path) -> None:
    model = RewardModel.from_base(save_base("bert", tmp_path), heads=400)
    assert model.heads.weight.std().item() == pytest.approx(97**-0.5, rel=0.05)  # they read three layers of 32
    assert model.heads.bias.abs().max().item() == 0.0


def test_heads_are_drawn_by_the_seed(tmp_path: Path) -> None:
    save_base("bert", tmp_path)
    first, again, other = (RewardModel.from_base(tmp_path, seed=s).heads.weight for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_cls_pooling_reads_the_first_token(tmp_path: Path) -> None:
    save_base("bert", tmp_path)
    model = RewardModel.from_base(tmp_path, pooling="cls")
    with torch.no_grad():
        state = model.trunk(input_ids=IDS, attention_mask=MASK).last_hidden_state[:, 0]
        torch.testing.assert_close(model(IDS, MASK), model.heads(state))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    save_base("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnusableBase):
        RewardModel.from_base(tmp_path)


def test_an_encoder_decoder_is_refused_by_name(tmp_path: Path) -> None:
    T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(UnusableBase, match="t5"):
        RewardModel.from_base(tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50), "linear_attention"),
        (MptConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=50), "columns of its row"),
        (
            GPTNeoConfig(hidden_size=16, num_layers=2, attention_types=[[["global", "local"], 1]], vocab_size=50),
            "local",
        ),
    ],
    ids=["mamba", "mpt", "gpt_neo"],
)
def test_a_decoder_whose_attention_is_not_by_positions_is_refused(
    kind: PretrainedConfig, reason: str, tmp_path: Path
) -> None:
    kind.save_pretrained(tmp_path)
    with pytest.raises(UnusableBase, match=f"causal attention by positions, not .*{reason}"):
        RewardModel.from_base(tmp_path)


def test_inputs_may_be_longer_than_an_attention_window(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_base("llama", tmp_path))
    window = MistralConfig(sliding_window=64, max_position_embeddings=256)
    assert longest_input(window, tokenizer) == 256


@pytest.mark.parametrize(("kind", "longest"), [("longrope", 64), ("dynamic", 256), ("yarn", 256)])
def test_inputs_stay_where_rotations_do_not_depend_on_the_longest_of_a_batch(
    kind: str, longest: int, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(save_base("llama", tmp_path))
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    stretched = LlamaConfig(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=256, rope_parameters={**rope, **factors}
    )
    assert longest_input(stretched, tokenizer) == longest


def test_quantised_weights_are_refused_with_their_method(tmp_path: Path) -> None:
    save_base("llama", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(UnusableBase, match=r"quantised \(gptq\).*dequantise"):
        RewardModel.from_base(tmp_path)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableBase):
        RewardModel.from_base(tmp_path)
    with pytest.raises(UnusableBase):
        RewardModel.load(save_base("bert", tmp_path / "no-heads"))
