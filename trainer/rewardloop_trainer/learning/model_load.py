"""Prepares a loaded model to be trained: its device, types, attention, frozen and recomputed layers.

Every trainer goes through `prepare`: reward models, supervised training and policies, offline and online.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from rewardloop_trainer.data.computing.autocast import compute_in
from rewardloop_trainer.data.computing.head import head_of
from rewardloop_trainer.data.computing.shards import divide
from rewardloop_trainer.data.computing.torchrun import started_processes
from rewardloop_trainer.learning.layers import freeze_layers, layer_stack, recompute_layers
from rewardloop_trainer.learning.settings import LearnerSettings

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Parameters with these parts in their names stay in float32: they are few, and what they learn is in small steps.
_IN_FLOAT32 = ("lora_", "heads.", "threshold")


class UnusableDevice(ValueError):
    """Raised when this machine cannot train a model as the settings ask; the message names the setting."""


def check_machine(settings: LearnerSettings) -> None:
    """Refuse settings that this machine cannot follow, before anything is loaded.

    Raises:
        UnusableDevice: If there is no GPU, no library or no other process that the settings need.
    """
    on_gpu = device_of(settings).type == "cuda"
    if settings.attention == "flash_attention_2":
        if not on_gpu or computation_of(settings) != torch.bfloat16:
            raise UnusableDevice("attention flash_attention_2 needs a GPU and computation in bfloat16: take sdpa")
        if find_spec("flash_attn") is None:
            raise UnusableDevice("attention flash_attention_2 needs the package flash_attn, which is not installed")
    if settings.tf32 and not on_gpu:
        raise UnusableDevice("tf32 needs a GPU: leave it off")
    if settings.quantised_base != "none":
        if not on_gpu:
            raise UnusableDevice(f"quantised_base {settings.quantised_base} needs a GPU: take none")
        if find_spec("bitsandbytes") is None:
            raise UnusableDevice(
                f"quantised_base {settings.quantised_base} needs bitsandbytes: pip install bitsandbytes, or take none"
            )
    if settings.shard and started_processes() == 1:
        raise UnusableDevice(
            "shard divides a model among the processes of torchrun, and this one is alone: start several, or leave it "
            "off"
        )


def device_of(settings: LearnerSettings) -> torch.device:
    """The device to train on; under torchrun the GPU of the process's local rank. Raises `UnusableDevice`."""
    has_gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not has_gpu:
        raise UnusableDevice("device cuda was asked for, but torch sees no GPU")
    if settings.device == "cpu" or not has_gpu:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def type_of(settings: LearnerSettings) -> torch.dtype:
    """The type of the weights in training."""
    return _TYPES[settings.weights]


def computation_of(settings: LearnerSettings) -> torch.dtype:
    """The type of matrix products in training."""
    return type_of(settings) if settings.computation == "auto" else _TYPES[settings.computation]


def autocast_to(settings: LearnerSettings) -> torch.dtype | None:
    """The type of autocast in training; None if the model computes in the type of its weights."""
    return None if computation_of(settings) == type_of(settings) else computation_of(settings)


def choose_products(device: torch.device, *, tf32: bool) -> None:
    """Say for the whole process whether a GPU may round the factors of float32 matrix products to TF32."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def prepare(model: nn.Module, trunk: nn.Module, settings: LearnerSettings) -> None:
    """Make a loaded model ready to be trained, in place; a second call with the same settings changes nothing.

    Adapters are put in before, or after by a trainer that quantises the frozen weights.

    Args:
        model: The whole model.
        trunk: Its part that holds the layers, a model of transformers.
        settings: What to do.

    Raises:
        UnusableDevice: If the machine cannot do it, or the architecture does not have the attention.
        ValueError: If more layers are to be frozen than there are.
    """
    check_machine(settings)
    _set_attention(trunk, settings)
    set_type(model, type_of(settings))
    if settings.quantised_base != "none":
        _quantise(trunk, settings)
    device = device_of(settings)
    if not settings.shard:  # which moves a part of it alone
        model.to(device)
    choose_products(device, tf32=settings.tf32)
    shape_passes(model, trunk, settings)


def divide_causal_lm(model: Any, device: torch.device) -> None:
    """Divide a causal LM among the processes, in place; it has all of its parameters by now (`shards.divide`)."""

    def logits() -> Tensor:
        found: Tensor = model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False).logits
        return found

    head_of(model)  # it is tried once, on the whole model
    divide(model, model, layer_stack(model.base_model), logits, device)


def shape_passes(model: nn.Module, trunk: nn.Module, settings: LearnerSettings) -> None:
    """Freeze and recompute layers, and choose the type of computation, of a model wherever its weights are."""
    freeze_layers(trunk, settings.frozen_layers)
    if settings.gradient_checkpointing:
        recompute_layers(trunk)
    for module in (model, trunk):
        compute_in(module, autocast_to(settings))


def release(model: nn.Module, trunk: nn.Module) -> None:
    """Let a trained model, and the process, compute in float32 again as they did before `prepare`."""
    for module in (model, trunk):
        compute_in(module, None)
    choose_products(torch.device("cuda" if torch.cuda.is_available() else "cpu"), tf32=False)


def set_type(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights, without the adapters and score heads, which stay in float32."""
    for name, parameter in model.named_parameters():
        wanted = torch.float32 if any(part in name for part in _IN_FLOAT32) else dtype
        if parameter.is_floating_point() and parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def _set_attention(trunk: Any, settings: LearnerSettings) -> None:
    if settings.attention == "auto":
        return
    inner = trunk.get_base_model() if hasattr(trunk, "get_base_model") else trunk
    try:
        inner.set_attn_implementation(settings.attention)
    except (ValueError, ImportError) as error:
        raise UnusableDevice(f"attention {settings.attention}: {' '.join(str(error).split())}") from error
    if inner.config._attn_implementation != settings.attention:
        raise UnusableDevice(f"attention {settings.attention}: {type(inner).__name__} does not have it")


def _quantise(trunk: nn.Module, settings: LearnerSettings) -> None:
    """Replace the linear layers by ones that bitsandbytes quantises when they are moved to the GPU."""
    import bitsandbytes  # type: ignore[import-not-found]

    stack = layer_stack(trunk)
    for name, layer in list(stack.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        has_bias = layer.bias is not None
        if settings.quantised_base == "4bit":
            made = bitsandbytes.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                has_bias,
                compute_dtype=computation_of(settings),
                quant_type="nf4",
            )
            weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        else:
            made = bitsandbytes.nn.Linear8bitLt(layer.in_features, layer.out_features, has_bias, has_fp16_weights=False)
            weight = bitsandbytes.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        made.weight, made.bias = weight, layer.bias
        stack.set_submodule(name, cast(nn.Module, made))
