"""Writes the difference between two versions of a policy as a LoRA adapter, which a vLLM server can load by name.

Versions hold whole weights. If one was trained with adapters that were merged into them, the matrices of both differ by
few directions, which their singular vectors give back. The rounding of the merged weights is spread over all
directions, and is left out by a bound on its singular values.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_WEIGHT = ".weight"
# Matrices up to this size are decomposed exactly, others by a random projection.
_EXACT = 512
_OVERSAMPLING = 8
_POWER_ITERATIONS = 4
# Singular values below this share of the largest are rounding of the decomposition itself.
_LEAST_SHARE = 1e-5
# Root mean square of the rounding of numbers, as a share of their spacing.
_ROUNDING = 1 / math.sqrt(12)


class NoAdapter(ValueError):
    """Raised if no adapter makes one version of the other."""


def write_difference(base: Path, version: Path, target: Path, most_rank: int) -> int:
    """Write an adapter that makes ``version`` of ``base``, in PEFT's layout.

    Args:
        base: Directory of the version that is adapted.
        version: Directory of the version that results.
        target: The directory to write. It appears when it is complete.
        most_rank: Largest rank of the adapter.

    Returns:
        The adapter's rank, or 0 if the versions are the same; then nothing is written.

    Raises:
        NoAdapter: The versions differ in other tensors than matrices, or by more than ``most_rank`` directions.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    with ExitStack() as opened:
        before, after = _tensors(base, opened), _tensors(version, opened)
        if before.keys() != after.keys():
            raise NoAdapter(f"it has other tensors, such as {min(before.keys() ^ after.keys())}")
        for name in sorted(before):
            old, new = before[name].get_tensor(name), after[name].get_tensor(name)
            if old.shape != new.shape:
                raise NoAdapter(f"{name} has another shape")
            if torch.equal(old, new):
                continue
            if old.dim() != 2 or not name.endswith(_WEIGHT):
                raise NoAdapter(f"{name} differs, which no adapter can change")
            found = factors(old, new, most_rank)
            if found is None:
                raise NoAdapter(f"{name} differs by more than rank {most_rank}")
            if found[0].shape[0]:
                pairs[name.removesuffix(_WEIGHT)] = found
    rank = max((a.shape[0] for a, _ in pairs.values()), default=0)
    if rank:
        _write(pairs, rank, target)
    return rank


def factors(old: Tensor, new: Tensor, most_rank: int) -> tuple[Tensor, Tensor] | None:
    """Factor the difference of two matrices.

    Args:
        old: (out, in).
        new: (out, in).
        most_rank: Largest rank.

    Returns:
        A (rank, in) and B (out, rank) with old + B A = new up to rounding, in float32; None if that takes more ranks.
    """
    spacing = max(torch.finfo(old.dtype).eps, torch.finfo(new.dtype).eps)
    change = new.float() - old.float()
    rows, columns = change.shape
    left, sizes, right = _decomposed(change, most_rank + _OVERSAMPLING)
    rounding = _ROUNDING * spacing * new.float().square().mean().sqrt().item()
    # The largest singular value of a random matrix is about its standard deviation times this sum of roots.
    floor = max(2 * rounding * (math.sqrt(rows) + math.sqrt(columns)), _LEAST_SHARE * sizes[0].item())
    rank = int((sizes > floor).sum())
    if rank > most_rank:
        return None
    roots = sizes[:rank].sqrt()
    return (right[:, :rank] * roots).T.contiguous(), (left[:, :rank] * roots).contiguous()


def _decomposed(change: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return left vectors, singular values and right vectors, at least ``most`` of each, the largest first."""
    if min(change.shape) <= max(_EXACT, most):
        left, sizes, right = torch.linalg.svd(change, full_matrices=False)
        return left, sizes, right.T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found: tuple[Tensor, Tensor, Tensor] = torch.svd_lowrank(change, q=most, niter=_POWER_ITERATIONS)
    return found


def _tensors(directory: Path, opened: ExitStack) -> dict[str, Any]:
    """Return for each tensor of a version the open file that holds it."""
    found: dict[str, Any] = {}
    for path in sorted(directory.glob("*.safetensors")):
        file: Any = opened.enter_context(safe_open(path, framework="pt"))
        found |= dict.fromkeys(file.keys(), file)
    return found


def _write(pairs: dict[str, tuple[Tensor, Tensor]], rank: int, target: Path) -> None:
    tensors = {}
    for module, (a, b) in pairs.items():
        # An adapter has one rank. Directions of size 0 change nothing.
        missing = rank - a.shape[0]
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.nn.functional.pad(b, (0, missing))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in pairs}),
        "inference_mode": True,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".writing-{target.name}-", dir=target.parent))
    try:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        (partial / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        # The server may run as another user, and a temporary directory is its maker's alone.
        partial.chmod(0o755)
        for file in _files(partial):
            file.chmod(0o644)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.iterdir() if path.is_file())
