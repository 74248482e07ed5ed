"""Large bases whose weights stay in half precision, as they are stored, while every layer computes in float32.

Float32 holds every bfloat16 and float16 value, so the results are those of the same model loaded in float32. The
weights stay in the checkpoint's files, which are mapped into memory, and the pages of layers that were computed are
dropped. So it needs one layer in float32 and what is computed. Such a model cannot be trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from rewardloop.process.mapped_pages import drop_read_pages

LARGE_BYTES = 10**9  # of half precision; a smaller base is loaded in float32
_HALF = {"BF16": torch.bfloat16, "F16": torch.float16}
_LARGE_TABLE = 2**24  # rows times columns of an embedding of which only the rows that are looked up are converted
_HELD = "_stored_weights"
_DROPPED_BYTES = 256 * 2**20  # read between two times that pages are dropped
_KEEPS: ContextVar[bool] = ContextVar("keeps_stored_weights", default=False)


@contextmanager
def keep_stored_weights() -> Iterator[None]:
    """Load large bases within this context as they are stored."""
    token = _KEEPS.set(True)
    try:
        yield
    finally:
        _KEEPS.reset(token)


def loading_dtype(base: str) -> torch.dtype:
    """Return the type to load a base in: half precision for a large one if all of its weights are stored so."""
    if not _KEEPS.get():
        return torch.float32
    kinds, size = set[str](), 0
    for path in _checkpoint_files(base):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = [about for name, about in header.items() if name != "__metadata__"]
        kinds |= {about["dtype"] for about in tensors if about["dtype"].startswith(("F", "BF"))}
        size += path.stat().st_size
    (kind,) = kinds if len(kinds) == 1 else ("",)
    return _HALF.get(kind, torch.float32) if size > LARGE_BYTES else torch.float32


def compute_in_float32(model: Any) -> None:
    """Let a model whose parameters are in half precision compute in float32."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    with init_empty_weights(include_buffers=False):
        fresh: dict[str, Tensor] = dict(type(model)(model.config).named_buffers())
    narrow = _Narrow()
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                # A buffer that is not stored was computed in half precision, and rounded.
                is_stored = name not in module._non_persistent_buffers_set
                path = f"{prefix}.{name}" if prefix else name
                module._buffers[name] = buffer.float() if is_stored else fresh[path].to(torch.float32)
        if any(p.dtype in _HALF.values() for p in module.parameters(recurse=False)):
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(narrow, always_call=True)
    model.config.dtype = torch.float32


def _widen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    held = {name: p for name, p in module._parameters.items() if p is not None and p.dtype in _HALF.values()}
    if not held:
        return None
    module.__dict__[_HELD] = held
    if isinstance(module, nn.Embedding) and module.weight.numel() > _LARGE_TABLE and args:
        rows, places = torch.unique(cast(Tensor, args[0]), return_inverse=True)
        module.__dict__[_HELD] = held | {"padding_idx": module.padding_idx}
        module.padding_idx = None  # only training needs it, and it may exceed the rows that are left
        module._parameters["weight"] = _frozen(module.weight[rows])
        return (places, *args[1:])
    for name, parameter in held.items():
        module._parameters[name] = _frozen(parameter)
    return None


class _Narrow:
    """Gives modules their stored weights back, and drops the pages that these were read from."""

    def __init__(self) -> None:
        self._read_bytes = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        held = module.__dict__.pop(_HELD, {})
        if "padding_idx" in held:
            module.padding_idx = held.pop("padding_idx")
        module._parameters.update(held)
        self._read_bytes += sum(p.nbytes for p in held.values())
        if self._read_bytes >= _DROPPED_BYTES:
            self._read_bytes = 0
            drop_read_pages()


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().float(), requires_grad=False)


def _checkpoint_files(base: str) -> list[Path]:
    quietly = {"_raise_exceptions_for_missing_entries": False}
    if index := cached_file(base, SAFE_WEIGHTS_INDEX_NAME, **quietly):
        shards, _ = get_checkpoint_shard_files(base, index)  # type: ignore[no-untyped-call]
        return [Path(path) for path in shards]
    single = cached_file(base, SAFE_WEIGHTS_NAME, **quietly)
    return [Path(single)] if single else []
