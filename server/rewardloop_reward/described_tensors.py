"""Reads and writes safetensors files with what is known of their tensors.

safetensors writes several keys of metadata in an order of chance, so that the same tensors would have another hash each
time, and a version another digest. So everything is in one key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rewardloop_reward.unusable_base import UnusableBase

_KEY = "about"


def save_described(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write the tensors, and ``about`` as JSON."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, {_KEY: json.dumps(dict(about), sort_keys=True)})


def load_described(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_described` wrote, or an older file with several keys. Raises `UnusableBase`."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors, json.loads(about[_KEY]) if _KEY in about else about
    except (OSError, ValueError) as error:
        raise UnusableBase(f"{path}: {error}") from error
