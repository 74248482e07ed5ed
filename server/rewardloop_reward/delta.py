"""Reads the low-rank adapters of a delta: what they add to the linear layers of its trunk."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from rewardloop_reward.described_tensors import load_described

LORA = "lora.safetensors"


def read_factors(directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors of a delta's directory, by the path of the layer in the trunk.

    A layer with inputs ``x`` gives ``x @ A @ B`` beside its own output, for A (d_in, rank) and B (rank, d_out); B has
    LoRA's alpha / rank in it.

    Raises:
        UnusableBase: The file cannot be read.
        KeyError: A layer has only one of the two, or the file does not tell rank and alpha.
    """
    stored, about = load_described(directory / LORA)
    scale = float(about["alpha"]) / float(about["rank"])
    names = [name.removesuffix(".A") for name in stored if name.endswith(".A")]
    return {name: (stored[f"{name}.A"].T.contiguous(), scale * stored[f"{name}.B"].T) for name in names}
