"""Counts the bytes of the tensors that are alive, which is deterministic where a process's memory is not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block, follows the storage of every tensor that an operation makes.

    Attributes:
        now: Bytes that are alive. Tensors from before the block do not count.
        peak: The most that were alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and follow what it returns."""
        held = {_storage(t) for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and (key := _storage(tensor)) not in self._seen and key not in held:
                self._follow(tensor, key)
        return found

    def _follow(self, tensor: Tensor, key: int) -> None:
        storage = tensor.untyped_storage()
        self._seen[key] = storage.nbytes()
        self.now += self._seen[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._seen.pop(key)


def _storage(tensor: Tensor) -> int:
    return id(tensor.untyped_storage())


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors that share no storage."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
