"""Low-rank adapters inside a model's own layers: put in, switched off, taken out as weights, and merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rewardloop_trainer.learning.linear_modules import linear_modules
from rewardloop_trainer.learning.settings import LoraSettings


def add_adapters(model: Any, lora: LoraSettings) -> None:
    """Freeze a model and put adapters in float32 into the linear layers of its trunk; it stays the same class."""
    from peft import LoraConfig, inject_adapter_in_model

    trunk = model.base_model
    prefix = "" if trunk is model else f"{model.base_model_prefix}."
    names = linear_modules(trunk, lora.modules)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[f"{prefix}{name}" for name in names],
        fan_in_fan_out=any(isinstance(trunk.get_submodule(name), Conv1D) for name in names),
    )
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # small steps are lost in half precision
    model.eval()


def has_adapters(model: nn.Module) -> bool:
    """Whether the model has adapters that are not merged."""
    return bool(_adapted(model))


def adapter_weights(model: nn.Module) -> Mapping[str, Tensor]:
    """The adapters' weights by name."""
    return {name: parameter.data for name, parameter in model.named_parameters() if "lora_" in name}


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let the model compute as it did before it had adapters, within the block."""
    layers = list(_adapted(model).values())
    for layer in layers:
        layer._disable_adapters = True  # enable_adapters would also change what learns
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights that they change, which must be in float32, and take them out."""
    for name, layer in _adapted(model).items():
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    model.requires_grad_(True)


def _adapted(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
