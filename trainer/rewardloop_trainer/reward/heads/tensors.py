"""Reads a head that no class of transformers has off the tensors of a checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from rewardloop_reward.neck import Layer
from rewardloop_trainer.data.base_text import UnusableBase

# A file beside the model's, in which some trainers keep a value head; the second form is a pickle.
_BESIDE, _PICKLE = "value_head.safetensors", "value_head.bin"
_MODEL, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NAME = re.compile(r"^(?P<head>\w+(?:\.[A-Za-z_]\w*)*?)\.(?:(?P<place>\d+)\.)?(?P<kind>weight|bias)$")


def value_head_names(base: str) -> tuple[str, ...]:
    """Return the names of the tensors in a file of value heads beside the model's, if there is one.

    Raises:
        UnusableBase: If that file is a pickle or cannot be read.
    """
    if (path := _file(base, _BESIDE)) is not None:
        return tuple(sorted(_names(path)))
    if _file(base, _PICKLE) is not None:
        raise UnusableBase(f"{base}: its trained head is in {_PICKLE}, a pickle: save it as {_BESIDE}")
    return ()


def head_name(names: Sequence[str]) -> str | None:
    """Return the module that all the tensors belong to, as `head_layers` reads them; None if there is no such one."""
    found = [_NAME.match(name) for name in names]
    heads = {match["head"] for match in found if match}
    return heads.pop() if len(heads) == 1 and all(found) else None


def head_layers(base: str, names: Sequence[str], width: int) -> tuple[Layer, ...] | None:
    """Return the layers of a head that is one linear layer, or linear layers with one function between each two.

    Args:
        base: Hugging Face directory or hub id.
        names: Names of the head's tensors in the checkpoint.
        width: Of the trunk.

    Returns:
        The layers in order, in float32; None if the tensors are not those of such a head on this trunk.

    Raises:
        UnusableBase: If the tensors cannot be read.
    """
    parts = {name: match for name in names if (match := _NAME.match(name))}
    places = sorted({int(match["place"] or 0) for match in parts.values()})
    if places != list(range(0, 2 * len(places), 2)) or len({m["place"] is None for m in parts.values()}) != 1:
        return None
    tensors = _read(base, names)
    by_place = {(int(match["place"] or 0), match["kind"]): tensors[name] for name, match in parts.items()}
    layers: list[Layer] = []
    for place in places:
        weight, bias = by_place.get((place, "weight")), by_place.get((place, "bias"))
        if weight is None or weight.ndim != 2 or weight.shape[1] != width:
            return None
        width = weight.shape[0]
        if bias is not None and bias.shape != (width,):
            return None
        layers.append((weight, bias))
    return tuple(layers)


def last_rows(base: str, names: Iterable[str]) -> int | None:
    """Return how many outputs the last layer of a classifier has, by its tensors; None if they do not tell."""
    known = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
    found = [name for name in names if name in known]
    return None if len(found) != 1 else _read(base, found)[found[0]].shape[0]


def _read(base: str, names: Sequence[str]) -> dict[str, Tensor]:
    """Read tensors of a checkpoint in one file or several, in float32."""
    index, single, beside = (_file(base, name) for name in (_INDEX, _MODEL, _BESIDE))
    files = [path for path in (single, beside) if path is not None]
    if index is not None:
        stored: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = {_file(base, stored[name]) for name in names if name in stored}
        files = [*(path for path in parts if path is not None), *files]
    found: dict[str, Tensor] = {}
    for path in files:
        held = _names(path)
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name).to(torch.float32) for name in names if name in held}
    if missing := sorted(set(names) - set(found)):
        raise UnusableBase(f"{base}: {missing[0]} is in none of its safetensors files")
    return found


def _names(path: Path) -> frozenset[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return frozenset(file.keys())
    except (OSError, SafetensorError) as error:
        raise UnusableBase(f"{path}: {error}") from error


def _file(base: str, name: str) -> Path | None:
    """Return a file of a Hugging Face directory or hub id; None if it does not have it."""
    found = cached_file(
        base,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
