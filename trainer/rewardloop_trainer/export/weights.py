"""A graph without its large weights, and where each of them comes from.

A weight is read in blocks, when the graph is written. So the memory that an export needs does not grow with the model,
and a tensor may be larger than the 2 GB at which protobuf stops. Weights beyond `INLINE_BYTES` together go into a file
beside the graph (ONNX's external data), which ONNX Runtime maps into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from torch import Tensor

from rewardloop.process.mapped_pages import drop_read_pages
from rewardloop_trainer.export.errors import ExportFailed

Array: TypeAlias = npt.NDArray[Any]
Watch: TypeAlias = Callable[[int, int], None]  # bytes done, bytes in all

INLINE_BYTES = 256 * 2**20
_SMALL_BYTES = 1024  # a smaller tensor stays in the graph, where shape inference and optimisers can read it
_BLOCK_BYTES = 64 * 2**20
_ALIGNMENT = 4096  # a page, so that a weight can be mapped


@dataclass(frozen=True, slots=True)
class Weight:
    """The values of one initialiser.

    Attributes:
        shape: Its shape.
        dtype: Its type in the graph.
        blocks: Yields the values in order, in arrays of ``dtype`` of at most some 64 MB.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[Array]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> Array:
        """Return the whole tensor in memory."""
        whole = np.empty(math.prod(self.shape), dtype=self.dtype)
        at = 0
        for block in self.blocks():
            whole[at : at + block.size] = block.reshape(-1)
            at += block.size
        return whole.reshape(self.shape)

    def mapped(self, change: Callable[[Array], Array], dtype: np.dtype[Any]) -> Weight:
        """Return the weight with ``change``, which acts on each element alone, applied to it when it is read."""
        return Weight(self.shape, dtype, lambda: (change(block) for block in self.blocks()))

    @classmethod
    def of_array(cls, array: Array) -> Weight:
        return cls(array.shape, array.dtype, lambda: iter((array,)))

    @classmethod
    def of_tensor(cls, tensor: Tensor, *, is_transposed: bool = False) -> Weight:
        """A torch tensor in float32, whatever its own type."""
        view = tensor.detach().cpu()
        if is_transposed:
            view = view.T
        return cls(tuple(view.shape), np.dtype(np.float32), partial(_tensor_blocks, view))

    @classmethod
    def of_file(cls, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Weight:
        """Values that lie in a file."""
        return cls(shape, dtype, partial(_file_blocks, path, offset, math.prod(shape), dtype))


@dataclass(slots=True)
class Graph:
    """A graph whose weights are held apart.

    Attributes:
        proto: The model. Initialisers that are named in ``weights`` have a shape and a type here, but no values.
        weights: The values by the initialiser's name.
    """

    proto: onnx.ModelProto
    weights: dict[str, Weight] = field(default_factory=dict)

    @classmethod
    def of(cls, proto: onnx.ModelProto, directory: Path = Path()) -> Graph:
        """Take the weights out of a model, in place.

        Args:
            proto: The model.
            directory: Where its external data lie. Data without a location have no values yet.
        """
        graph = cls(proto)
        for initialiser in proto.graph.initializer:
            if initialiser.data_location == TensorProto.EXTERNAL:
                if not (location := ExternalDataInfo(initialiser).location):
                    continue
                offset = ExternalDataInfo(initialiser).offset or 0
                dtype = np.dtype(helper.tensor_dtype_to_np_dtype(initialiser.data_type))
                weight = Weight.of_file(directory / location, offset, tuple(initialiser.dims), dtype)
            elif len(initialiser.raw_data) > _SMALL_BYTES:
                weight = Weight.of_array(numpy_helper.to_array(initialiser))
            else:
                continue
            graph.replace(initialiser.name, weight)
        return graph

    def add(self, name: str, weight: Weight) -> None:
        """Add an initialiser."""
        self.proto.graph.initializer.append(_hollow(name, weight))
        self.weights[name] = weight

    def replace(self, name: str, weight: Weight) -> None:
        """Give an initialiser other values."""
        (held,) = (i for i in self.proto.graph.initializer if i.name == name)
        held.CopyFrom(_hollow(name, weight))
        self.weights[name] = weight

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename initialisers, here and in the nodes that read them."""
        for node in self.proto.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
        for initialiser in self.proto.graph.initializer:
            initialiser.name = names.get(initialiser.name, initialiser.name)
        self.weights = {names.get(name, name): weight for name, weight in self.weights.items()}

    def keep(self, names: set[str]) -> None:
        """Drop all other initialisers."""
        kept = [i for i in self.proto.graph.initializer if i.name in names]
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(kept)
        self.weights = {name: weight for name, weight in self.weights.items() if name in names}

    def values(self, name: str) -> Array:
        """Return the values of an initialiser. Raises KeyError if there is none of this name."""
        if name in self.weights:
            return self.weights[name].array()
        found = next((i for i in self.proto.graph.initializer if i.name == name), None)
        if found is None:
            raise KeyError(name)
        array: Array = numpy_helper.to_array(found)
        return array


def load_graph(path: Path) -> Graph | None:
    """Read a version's model.onnx without its external data. Return None if there is no such file."""
    if not path.exists():
        return None
    return Graph.of(onnx.load_model(str(path), load_external_data=False), path.parent)


def write_graph(graph: Graph, path: Path, watch: Watch | None = None) -> None:
    """Write one file, or the weights beside it if they exceed `INLINE_BYTES`.

    Args:
        graph: The graph.
        path: The ONNX file; the other one is named ``<name>.data``.
        watch: Called with the bytes of weights that are written and that there are, if they go beside the graph.
    """
    written = onnx.ModelProto()
    written.CopyFrom(graph.proto)
    total = sum(weight.nbytes for weight in graph.weights.values())
    held = {i.name: i for i in written.graph.initializer}
    outside = [n for n, w in graph.weights.items() if total > INLINE_BYTES and w.nbytes > _SMALL_BYTES]
    for name in graph.weights.keys() - set(outside):
        held[name].CopyFrom(numpy_helper.from_array(graph.weights[name].array(), name))
    if outside:
        with outside_of(path).open("wb") as file:
            for name in outside:
                held[name].external_data.extend(_append(file, outside_of(path).name, graph.weights[name]))
                drop_read_pages()
                if watch is not None:
                    watch(file.tell(), total)
    onnx.save_model(written, str(path))


def outside_of(path: Path) -> Path:
    """The file that holds the weights of a large graph."""
    return path.with_name(f"{path.name}.data")


def _append(file: BinaryIO, location: str, weight: Weight) -> list[onnx.StringStringEntryProto]:
    """Write a weight at the end of the file, and return the entries that say where it lies."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    start = file.tell()
    for block in weight.blocks():
        file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    if file.tell() - start != weight.nbytes:
        raise ExportFailed(f"a weight of {weight.nbytes} bytes was written as {file.tell() - start}")
    found = {"location": location, "offset": str(start), "length": str(weight.nbytes)}
    return [onnx.StringStringEntryProto(key=key, value=value) for key, value in found.items()]


def _hollow(name: str, weight: Weight) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    return TensorProto(name=name, dims=weight.shape, data_type=kind, data_location=TensorProto.EXTERNAL)


def _tensor_blocks(view: Tensor) -> Iterator[Array]:
    if view.dim() == 0:
        yield view.float().numpy()
        return
    rows = max(1, _BLOCK_BYTES // max(1, 4 * math.prod(view.shape[1:])))
    for start in range(0, len(view), rows):
        yield view[start : start + rows].float().contiguous().numpy()


def _file_blocks(path: Path, offset: int, count: int, dtype: np.dtype[Any]) -> Iterator[Array]:
    with path.open("rb") as file:
        file.seek(offset)
        while count:
            block = np.fromfile(file, dtype=dtype, count=min(count, _BLOCK_BYTES // dtype.itemsize))
            if not block.size:
                raise ExportFailed(f"{path} is cut off")
            count -= block.size
            yield block
