"""Reads a user's own ONNX graph of a sequence classifier, and gives it the inputs and the output that a server expects.

Such a graph takes ``input_ids`` and ``attention_mask``, and perhaps ``token_type_ids`` and ``position_ids``, each
(B, S), and gives logits (B, k). A server feeds integers of 64 bits and no positions, and reads an output ``logits`` of
float32, so nodes that convert them are added. Weights in files beside the graph stay there until the graph is written.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from rewardloop.formats.graphs.check import check_graph, external_files
from rewardloop.formats.graphs.fields import NotAGraph
from rewardloop.formats.graphs.inputs import GraphInputs
from rewardloop.formats.signatures import SIGNATURE
from rewardloop.formats.store import MANIFEST, MODEL, TOKENIZER, TORCH
from rewardloop.formats.store_errors import UnsafeVersion
from rewardloop_trainer.export.errors import UnusableGraph

_REQUIRED: Final = ("input_ids", "attention_mask")
_OPTIONAL: Final = ("token_type_ids", "position_ids")
_PREFIX = "rewardloop."  # of the names of added tensors
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_LEAST_OPSET = 11  # the first with CumSum
_PRECISIONS: Final[dict[int, str]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "int4",
}
HALVES: Final = ("float16", "bfloat16")
_FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"
_ORT_ERROR = 3


@dataclass(frozen=True, slots=True)
class OwnGraph:
    """A user's graph, with the inputs and the output that a server expects.

    Attributes:
        proto: The graph, without the weights that are in other files.
        folder: The folder that holds these files.
        files: Their locations from there.
        has_segments: Whether it takes ``token_type_ids``.
        has_positions: Whether the user's graph takes ``position_ids``, which are now counted from its mask.
        rounds_to: The number format in which the user's graph gives its scores.
        dropped: Outputs of the user's graph that are left out.
    """

    proto: onnx.ModelProto
    folder: Path
    files: frozenset[str]
    has_segments: bool
    has_positions: bool
    rounds_to: str
    dropped: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The number format of most weights, or of the scores if these are rounded."""
        sizes: Counter[str] = Counter({"float32": 0})
        for tensor in self.proto.graph.initializer:
            if (name := _PRECISIONS.get(tensor.data_type)) is not None:
                sizes[name] += int(np.prod(tensor.dims, dtype=np.int64))
        most = sizes.most_common(1)[0][0]
        return self.rounds_to if most == "float32" and self.rounds_to in HALVES else most

    @property
    def quantizes_runs(self) -> bool:
        """Whether a run's rows are quantised together, so that each changes the others' scores."""
        return any(node.op_type.startswith("DynamicQuantize") for node in self.proto.graph.node)

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embedding that the token ids index; None if the graph does not show it."""
        shapes = {tensor.name: tensor.dims for tensor in self.proto.graph.initializer}
        ids = {"input_ids"}
        tables = []
        for node in self.proto.graph.node:
            if node.op_type in ("Cast", "Identity") and node.input[0] in ids:
                ids.add(node.output[0])
            elif node.op_type == "Gather" and node.input[1] in ids and node.input[0] in shapes:
                tables.append(int(shapes[node.input[0]][0]))
        return min(tables, default=None)

    def combined(self, weights: Sequence[float]) -> OwnGraph:
        """Return the graph with one score, the sum of the outputs with these weights. The proto is changed in place."""
        graph = self.proto.graph
        _rename(graph, "logits", f"{_PREFIX}outputs")
        table = np.array(weights, dtype=np.float32)[:, None]
        graph.initializer.append(numpy_helper.from_array(table, f"{_PREFIX}weights"))
        graph.node.append(helper.make_node("MatMul", [f"{_PREFIX}outputs", f"{_PREFIX}weights"], ["logits"]))
        return self

    def session(self) -> OwnSession:
        """Open the graph in ONNX Runtime on the CPU. Raises `UnusableGraph`."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ORT_ERROR
        options.add_session_config_entry(_FOLDER_OF_WEIGHTS, str(self.folder.resolve()))
        try:
            return OwnSession(
                onnxruntime.InferenceSession(
                    self.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            )
        except Exception as error:  # ONNX Runtime raises bare Exceptions for a bad graph
            raise UnusableGraph(f"ONNX Runtime does not load the graph: {_one_line(error)}") from error

    def write(self, directory: Path) -> None:
        """Write the graph, and copy the files that hold its weights beside it."""
        (directory / MODEL).write_bytes(self.proto.SerializeToString())
        for name in sorted(self.files):
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, target)


class OwnSession:
    """Runs a graph that `OwnGraph.session` opened."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def logits(self, feeds: GraphInputs) -> npt.NDArray[np.float32]:
        """Return the logits, (B, k). Raises `UnusableGraph` if it gives none."""
        rows, length = feeds["input_ids"].shape
        where = f"the graph fails on {rows} rows of {length} tokens"
        try:
            found: npt.NDArray[np.float32] = self._session.run(["logits"], feeds)[0]
        except Exception as error:  # as above
            raise UnusableGraph(f"{where}: {_one_line(error)}") from error
        if found.ndim != 2 or len(found) != rows:
            raise UnusableGraph(
                f"the graph gives {found.shape} for {rows} rows of {length} tokens; it must give (rows, scores)"
            )
        if not np.isfinite(found).all():
            raise UnusableGraph(f"{where}: its logits are not finite")
        return found


def read_own_graph(path: Path) -> OwnGraph:
    """Read a graph and convert its inputs and its output. The weights in other files are not read.

    Raises:
        UnusableGraph: If the file is no graph, its weights are not all beside it, or a server could not feed it.
        UnsafeVersion: If the graph asks for files outside its folder, or for operators that ONNX Runtime does not have.
    """
    try:
        files = _checked_files(path)
        proto = onnx.load_model(str(path), load_external_data=False)
    except (NotAGraph, DecodeError, OSError) as error:
        raise UnusableGraph(f"{path} is not an ONNX graph: {error}") from error
    graph = proto.graph
    inputs = _check_inputs(path, graph)
    for name in inputs:
        if name != "position_ids" and inputs[name] != TensorProto.INT64:
            _take_int64(graph, name, inputs[name])
    if "position_ids" in inputs:
        _count_positions(path, proto, inputs["position_ids"])
    rounds_to, dropped = _give_logits(path, graph)
    return OwnGraph(proto, path.parent, files, "token_type_ids" in inputs, "position_ids" in inputs, rounds_to, dropped)


def _checked_files(path: Path) -> frozenset[str]:
    """Return the files that the graph asks for, after checking that they and its operators may be used."""
    names = frozenset(str(PurePosixPath(location)) for location in external_files(path))
    # No name is absolute or leaves the folder. Whether a graph with loops is served is the server's choice.
    check_graph(path, dict.fromkeys(names, ""), str(path), allows_loops=True)
    folder = path.parent.resolve()
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise UnusableGraph(f"{path}: its weights are not beside it: {', '.join(missing)}")
    if links := sorted(name for name in names if not (folder / name).resolve().is_relative_to(folder)):
        raise UnsafeVersion(f"{path}: links to weights outside its folder: {', '.join(links)}; put the files there")
    if taken := sorted(n for n in names if PurePosixPath(n).parts[0] in (MODEL, TOKENIZER, TORCH, MANIFEST, SIGNATURE)):
        raise UnusableGraph(f"{path}: its weights have the name of another file of a version: {', '.join(taken)}")
    return names


def _check_inputs(path: Path, graph: onnx.GraphProto) -> dict[str, int]:
    """Return the types of the graph's inputs by name. Raises `UnusableGraph` if a server could not feed them."""
    weights = {tensor.name for tensor in graph.initializer}
    given = {i.name: i.type.tensor_type for i in graph.input if i.name not in weights}
    missing = [name for name in _REQUIRED if name not in given]
    unknown = sorted(set(given) - {*_REQUIRED, *_OPTIONAL})
    if missing or unknown:
        raise UnusableGraph(
            f"{path} takes {', '.join(given) or 'no inputs'}; a server feeds {', '.join(_REQUIRED)} and, if the graph "
            f"takes them, {', '.join(_OPTIONAL)}: export it for the task of text classification"
        )
    for name, tensor in given.items():
        if tensor.elem_type not in _INTEGERS:
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            raise UnusableGraph(f"{path}: the input {name} is {kind}; it must be int64 or int32")
        sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
        is_free = not any(isinstance(size, int) for size in sizes) or (name == "position_ids" and sizes[0] == 1)
        if tensor.HasField("shape") and (len(sizes) != 2 or not is_free):
            raise UnusableGraph(
                f"{path}: the input {name} has the shape {sizes}; export it again with dynamic axes for the batch and "
                "for the sequence"
            )
    return {name: tensor.elem_type for name, tensor in given.items()}


def _take_int64(graph: onnx.GraphProto, name: str, kind: int) -> None:
    _rename(graph, name, f"{_PREFIX}{name}")
    (given,) = (i for i in graph.input if i.name == name)
    given.type.tensor_type.elem_type = TensorProto.INT64
    graph.node.insert(0, helper.make_node("Cast", [name], [f"{_PREFIX}{name}"], to=kind))


def _count_positions(path: Path, proto: onnx.ModelProto, kind: int) -> None:
    """Replace the input ``position_ids`` by the positions of the tokens that the mask shows, from 0."""
    opset = max((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), default=0)
    if opset < _LEAST_OPSET:
        raise UnusableGraph(
            f"{path}: its opset is {opset}; positions can be counted from {_LEAST_OPSET} on: export it again"
        )
    graph = proto.graph
    (given,) = (i for i in graph.input if i.name == "position_ids")
    graph.input.remove(given)
    one, count, last = (f"{_PREFIX}{name}" for name in ("one", "count", "last"))
    graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=np.int64), one))
    nodes = (
        helper.make_node("CumSum", ["attention_mask", one], [count]),
        helper.make_node("Sub", [count, one], [last]),
        helper.make_node("Cast", [last], ["position_ids"], to=kind),
    )
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)


def _give_logits(path: Path, graph: onnx.GraphProto) -> tuple[str, tuple[str, ...]]:
    """Make the scores the graph's only output, in float32 by the name of ``logits``.

    Returns:
        The number format that they had, and the names of the other outputs.
    """
    names = [output.name for output in graph.output]
    if "logits" not in names and len(names) != 1:
        raise UnusableGraph(f"{path} gives {', '.join(names)}: one output must be the scores, by the name of logits")
    (output,) = (o for o in graph.output if o.name == ("logits" if "logits" in names else names[0]))
    kind = output.type.tensor_type.elem_type
    if kind not in _FLOATS:
        raise UnusableGraph(f"{path}: {output.name} is {TensorProto.DataType.Name(kind).lower()}, not a score")
    del graph.output[:]
    source = output.name
    if source != "logits" or kind != TensorProto.FLOAT:
        _rename(graph, "logits", f"{_PREFIX}logits")
        source = f"{_PREFIX}logits" if source == "logits" else source
        graph.node.append(helper.make_node("Cast", [source], ["logits"], to=TensorProto.FLOAT))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None]))
    return _PRECISIONS[kind], tuple(name for name in names if name != output.name)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor in all nodes, also in those of branches and loops."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
        for inner in _subgraphs(node):
            _rename(inner, old, new)
            for output in inner.output:
                if output.name == old:
                    output.name = new


def _subgraphs(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
