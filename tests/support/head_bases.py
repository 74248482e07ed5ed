"""Small bases with trained heads of each kind, and what the heads' own classes compute."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PretrainedConfig

from rewardloop.formats.store import MODEL, TORCH
from rewardloop.formats.text import Encoded
from rewardloop_trainer.export.parity import check_parity, export_reward
from rewardloop_trainer.learning.linear_modules import linear_modules
from rewardloop_trainer.reward.heads.choice import HeadChoice
from rewardloop_trainer.reward.model import RewardModel
from support.reward_bases import config, encoder_for, save_tokenizer

VOCABULARY = 260
_IDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "eos_token_id": 3,
}
_TOWER: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_size": 32,
    "max_position_embeddings": 128,
}
# What an architecture needs beside the sizes that nearly all of them have.
_MORE: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "modernbert-decoder": {"local_attention": 16, "layer_types": ["full_attention", "sliding_attention"]},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2},
}


def config_of(kind: str, **more: Any) -> PretrainedConfig:
    """Return a small configuration of an architecture."""
    if kind in ("bert", "roberta", "llama", "qwen2", "gpt2"):
        found = config(kind)
        for name, value in more.items():
            setattr(found, name, value)
        return found
    sizes = _IDS if kind == "distilbert" else _IDS | _TOWER
    return AutoConfig.for_model(kind, **{**sizes, **_MORE.get(kind, {}), **more})


def save(auto: Any, kind: str, directory: Path, labels: int | None = None, **more: Any) -> Any:
    """Save a model whose weights all differ from those that a class draws. Returns it."""
    chosen = config_of(kind, **more)
    if labels is not None:
        chosen.num_labels = labels
    torch.manual_seed(1)
    model = auto.from_config(chosen).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.get_input_embeddings().weight[0] = 0  # the padding token's, as classes of transformers keep it
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return model


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a checkpoint in place."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def change_config(directory: Path, **changes: Any) -> None:
    """Change entries of a checkpoint's config.json; None removes one."""
    written = json.loads((directory / "config.json").read_text()) | changes
    kept = {name: value for name, value in written.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept))


def forget_architecture(directory: Path) -> None:
    """Leave a checkpoint's class and labels out of its config.json."""
    change_config(directory, architectures=None, id2label=None, label2id=None)


def chosen(**choices: Any) -> HeadChoice:
    return HeadChoice.model_validate(choices)


def sequences() -> list[torch.Tensor]:
    """Return sequences of several lengths without padding, each (1, S)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, VOCABULARY, (1, length), generator=generator) for length in (2, 9, 23, 40)]


def logits_of(classifier: Any) -> torch.Tensor:
    """Return the logits (sequences, labels) of `sequences` by a class of transformers; a token classifier's last."""
    with torch.no_grad():
        found = [classifier(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in sequences()]
    return torch.cat([each[:, -1] if each.ndim == 3 else each for each in found])


def last_states(language_model: Any) -> torch.Tensor:
    """Return the last of the hidden states at the last token, as TRL's value head reads it: (sequences, d)."""
    with torch.no_grad():
        found = [language_model(input_ids=ids, output_hidden_states=True).hidden_states[-1] for ids in sequences()]
    return torch.cat([states[:, -1] for states in found])


def scores(model: RewardModel, ids: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the logits (sequences, heads) of each sequence alone."""
    with torch.no_grad():
        return torch.cat([model(each, torch.ones_like(each)) for each in ids])


def check_everywhere(model: RewardModel, expected: torch.Tensor, directory: Path) -> None:
    """Check the logits of `sequences`: those of the model, its exported graph, and its saved and loaded copy.

    A training step on the heads and their neck must then change the logits, and a saved copy must keep the change.

    Args:
        model: The model; it is changed.
        expected: Logits of the head's own class, (sequences,).
        directory: Where files may be written.
    """
    ids = sequences()
    every = expected[:, None].expand(-1, model.heads.out_features)
    torch.testing.assert_close(scores(model, ids), every, atol=1e-5, rtol=0)
    _check_graph(model, directory / "version", None)
    loaded = RewardModel.load(directory / "version" / TORCH)
    torch.testing.assert_close(scores(loaded, ids), every, atol=1e-5, rtol=0)
    learning = [parameter for name, parameter in loaded.named_parameters() if not name.startswith("trunk.")]
    optimizer = torch.optim.SGD(learning, lr=0.05)
    torch.stack([loaded(each, torch.ones_like(each)).mean() for each in ids]).sum().backward()
    assert all(p.grad is not None for name, p in loaded.named_parameters() if name != "threshold")
    optimizer.step()
    after = scores(loaded, ids)
    assert (after < every - 1e-3).all()
    _check_graph(loaded, directory / "trained", directory / "version")
    again = RewardModel.load(directory / "trained" / TORCH)
    torch.testing.assert_close(scores(again, ids), after, atol=1e-6, rtol=0)


def _check_graph(model: RewardModel, directory: Path, parent: Path | None) -> None:
    """Export the model with adapter inputs, and compare the graph with torch on the sequences in one padded batch."""
    encoder = encoder_for("bert")
    encoded = [Encoded(each[0].tolist(), None, False, 1, each.shape[1] - 1) for each in sequences()]
    layers = linear_modules(model.trunk, "query_value")
    export_reward(model, encoder.tokenizer, encoder.format, directory, parent, layers)
    check_parity(directory / MODEL, model, encoded, 0)
