"""Adds the low-rank adapter of the version that runs to the layers of the trunk that its versions share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor, nn

# By the path of a layer in the trunk: A (d_in, rank) and B (rank, d_out), which give x @ A @ B beside its output.
Factors: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]


class AdaptedLayers:
    """The layers of a trunk that adapters change.

    Args:
        trunk: The trunk, at one place.
        present: Returns the factors of the version that the calling thread runs.
    """

    def __init__(self, trunk: nn.Module, present: Callable[[], Factors]) -> None:
        self._trunk = trunk
        self._present = present
        self._known: set[str] = set()

    def know(self, factors: Factors) -> None:
        """Let these layers look for an adapter in each run. Loads call it, one at a time.

        Raises:
            ValueError: The trunk has no such layer, or one of another size.
        """
        modules = dict(self._trunk.named_modules())
        for path, (a, b) in factors.items():
            weight = getattr(modules.get(path), "weight", None)
            sizes = () if weight is None else tuple(weight.shape)
            if sorted(sizes) != sorted((a.shape[0], b.shape[1])):
                raise ValueError(f"the trunk has no layer {path!r} of {a.shape[0]} inputs and {b.shape[1]} outputs")
        for path in factors.keys() - self._known:
            self._known.add(path)
            modules[path].register_forward_hook(self._hook(path))

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def add(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            found = self._present().get(path)
            if found is None:
                return None
            a, b = found
            return output + (given[0].to(a.dtype) @ a @ b).to(output.dtype)

        return add
