"""Low-rank adapters on a reward model's trunk: added, saved as a delta, and loaded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers.pytorch_utils import Conv1D

from rewardloop_reward.delta import LORA as LORA
from rewardloop_reward.described_tensors import load_described, save_described
from rewardloop_trainer.learning.linear_modules import linear_modules
from rewardloop_trainer.learning.settings import LoraSettings
from rewardloop_trainer.reward.model import RewardModel

_NAME = "default"  # peft's name of a single adapter


def with_lora(model: RewardModel, settings: LoraSettings) -> RewardModel:
    """Freeze the trunk and add adapters to its linear layers; neck and heads stay trainable. Changes and returns it."""
    modules = linear_modules(model.trunk, settings.modules)
    return _put_on(model, modules, settings.rank, settings.alpha, settings.dropout)


def as_delta(model: RewardModel, settings: LoraSettings) -> RewardModel:
    """Make only adapters and heads trainable, which is what a delta holds; adds adapters if the model has none."""
    if not has_lora(model):
        with_lora(model, settings)
    for part in (model.neck, model.words, model.phrases):  # the graph that a delta runs over keeps them
        if part is not None:
            part.requires_grad_(False)
    return model


def has_lora(model: RewardModel) -> bool:
    """Whether the trunk has adapters that are not merged."""
    return hasattr(model.trunk, "merge_and_unload")


def lora_layers(model: RewardModel) -> Mapping[str, Any]:
    """The layers with adapters, by their path in the trunk."""
    from peft.tuners.lora import LoraLayer

    if not has_lora(model):
        return {}
    inner = cast(Any, model.trunk).base_model.model
    return {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}


def lora_matrices(layer: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A (rank, d_in), B (d_out, rank), and the factor with which ``B @ A`` is added to the layer's weight."""
    return layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight, float(layer.scaling[_NAME])


def save_delta(model: RewardModel, directory: Path) -> None:
    """Write the adapters and the heads, for `load_delta` on the same trunk. Raises ValueError without adapters."""
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no adapters: save it whole")
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        a, b, _ = lora_matrices(layer)
        tensors |= {f"{name}.A": a, f"{name}.B": b}
    lora = cast(Any, model.trunk).peft_config[_NAME]
    save_described(directory / LORA, tensors, {"rank": str(lora.r), "alpha": str(lora.lora_alpha)})
    model.save_heads(directory)


def load_delta(model: RewardModel, directory: Path, dropout: float = 0.0) -> RewardModel:
    """Add to a model without adapters what `save_delta` wrote. Changes and returns it. Raises `UnusableBase`."""
    stored, about = load_described(directory / LORA)
    modules = tuple(name.removesuffix(".A") for name in stored if name.endswith(".A"))
    _put_on(model, modules, int(about["rank"]), int(about["alpha"]), dropout)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            a, b, _ = lora_matrices(layer)
            a.copy_(stored[f"{name}.A"])
            b.copy_(stored[f"{name}.B"])
    model.load_heads(directory)
    return model.eval()


def _put_on(model: RewardModel, modules: Sequence[str], rank: int, alpha: int, dropout: float) -> RewardModel:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(modules),
        fan_in_fan_out=any(isinstance(model.trunk.get_submodule(m), Conv1D) for m in modules),
    )
    model.trunk = get_peft_model(cast(Any, model.trunk), lora)
    return model
