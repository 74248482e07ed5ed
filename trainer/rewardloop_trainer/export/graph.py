"""Traces the ONNX graph of a reward model's architecture, and fills it with weights.

Tracing takes seconds, but a training round changes only the weights. So a graph is traced without weights. It notes in
its metadata which initialiser holds which parameter, and the weights of each version are then written into it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from rewardloop_reward.decoder_rows import reach
from rewardloop_trainer.export.adapter_inputs import Places, add_adapter_inputs
from rewardloop_trainer.export.attention.branches import take_branches
from rewardloop_trainer.export.attention.lengths import take_lengths
from rewardloop_trainer.export.errors import ExportFailed
from rewardloop_trainer.export.experts import dense_experts
from rewardloop_trainer.export.stand_in import optimise, without_weights
from rewardloop_trainer.export.weights import Graph, Weight
from rewardloop_trainer.reward.model import RewardModel

OPSET = 23  # the first with Attention, RotaryEmbedding and RMSNormalization as single operators
_INTERFACE = 5  # raise it when what a graph computes of its inputs changes, so that no parent's older graph is reused
PARAMETERS = "rewardloop.parameters"
_ARCHITECTURE = "rewardloop.architecture"


def graph_of(model: RewardModel, segment_ids: bool, adapters: Sequence[str] = ()) -> Graph:
    """Trace the model's graph and fill it with its weights.

    Args:
        model: The model.
        segment_ids: Whether the graph takes ``token_type_ids``.
        adapters: Paths in the trunk of the linear layers that get adapter inputs.

    Raises:
        NoAdapterInputs: If a layer cannot have adapter inputs.
        ExportFailed: If the architecture cannot be exported; other exceptions come from torch's exporter.
    """
    graph, places = _trace(without_weights(model), segment_ids)
    places = add_adapter_inputs(graph, _without_transposes(graph.proto, places), adapters)
    graph.keep({name for node in graph.proto.graph.node for name in node.input})
    _note(graph.proto, PARAMETERS, json.dumps(places))
    _note(graph.proto, _ARCHITECTURE, _architecture(model, segment_ids, adapters))
    if not fill(graph, model, segment_ids, adapters):
        raise ExportFailed("the graph does not take the weights of the model that it was traced from")
    return graph


def fill(graph: Graph, model: RewardModel, segment_ids: bool, adapters: Sequence[str] = ()) -> bool:
    """Give a graph the model's weights, in place. They are read when the graph is written.

    Returns:
        False, and nothing is changed, if the graph is of another architecture or not in float32.
    """
    notes = {p.key: p.value for p in graph.proto.metadata_props}
    if notes.get(_ARCHITECTURE) != _architecture(model, segment_ids, adapters):
        return False
    places: Places = json.loads(notes[PARAMETERS])
    kinds = {i.name: i.data_type for i in graph.proto.graph.initializer}
    if any(kinds.get(name) != onnx.TensorProto.FLOAT for found in places.values() for name, _ in found):
        return False
    for name, parameter in _scored(model).items():
        for initialiser, is_transposed in places[name]:
            graph.replace(initialiser, Weight.of_tensor(parameter, is_transposed=is_transposed))
    return True


class _DecoderGraph(nn.Module):
    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, mask: Tensor, ends: Tensor) -> Tensor:
        return self.model.at_ends(input_ids, position_ids, mask, ends)


def _trace(model: RewardModel, segment_ids: bool) -> tuple[Graph, Places]:
    """Trace a model without weights.

    Returns:
        The graph, in which the parameters have no values yet, and the initialisers that hold each of them.
    """
    # Two rows of unequal length, because the exporter takes a size of 1 for a constant.
    ids = torch.ones((2, 7), dtype=torch.long)
    row_axes = {0: torch.export.Dim("batch"), 1: (length := torch.export.Dim("sequence"))}
    if model.is_decoder:
        causal = torch.ones((7, 7), dtype=torch.bool).tril().expand(2, 1, 7, 7).clone()
        inputs = {
            "input_ids": (ids, row_axes),
            "position_ids": (torch.arange(7).expand(2, 7).clone(), row_axes),
            "mask": (causal, {0: row_axes[0], 2: length, 3: length}),
            "ends": (torch.tensor([3, 9, 13]), {0: torch.export.Dim("responses")}),
        }
        with dense_experts(model.config):
            graph, places = _exported_decoder(model, inputs)
        _let_one_mask_stand_for_all_rows(graph.proto)
        take_branches(graph.proto, reach(model.config))
        return graph, places
    real = ids.clone()
    real[0, 4:] = 0
    inputs = {"input_ids": (ids, row_axes), "attention_mask": (real, row_axes)}
    if segment_ids:
        inputs["token_type_ids"] = (torch.zeros_like(ids), row_axes)
    graph, places = _exported(model, inputs, model)
    take_lengths(graph.proto)
    return graph, places


def _exported_decoder(model: RewardModel, inputs: Mapping[str, tuple[Tensor, dict[int, Any]]]) -> tuple[Graph, Places]:
    """Export a decoder, with torch's attention as one operator if ONNX has it for this model."""
    attention = model.config._attn_implementation
    try:
        return _exported(_DecoderGraph(model), inputs, model)
    except ExportFailed:
        if attention == "eager":
            raise
    model.config._attn_implementation = "eager"  # Falcon's attention with one head of keys has no such operator
    try:
        return _exported(_DecoderGraph(model), inputs, model)
    finally:
        model.config._attn_implementation = attention


def _exported(
    module: nn.Module, inputs: Mapping[str, tuple[Tensor, dict[int, Any]]], model: RewardModel
) -> tuple[Graph, Places]:
    """Export ``module``, which calls ``model``.

    ``inputs`` has an example of each input, and its axes that may have any size.
    """
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # it warns that vision operators are missing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                tuple(example for example, _ in inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=tuple(dict(axes) for _, axes in inputs.values()),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportFailed(f"torch cannot make an ONNX graph of it: {_cause(error)}") from error
    finally:
        exporter_log.setLevel(level)
    if program is None:
        raise ExportFailed("torch returned no ONNX program")
    places = optimise(program, module, {id(p): name for name, p in _scored(model).items()})
    graph = program.model_proto
    for given in graph.graph.input:
        # Torch silently falls back to a fixed size if a model's code depends on the size.
        sizes = given.type.tensor_type.shape.dim
        if not all(sizes[axis].dim_param for axis in inputs[given.name][1]):
            raise ExportFailed(f"the exporter fixed a size of the input {given.name}")
    _give_each_row_its_rotations(graph)
    return Graph.of(graph), {name: [(held, False) for held in places.get(name, ())] for name in _scored(model)}


def _cause(error: BaseException) -> str:
    """The first line of what the exporter failed on; what it says itself is advice about debugging."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _let_one_mask_stand_for_all_rows(graph: onnx.ModelProto) -> None:
    """Give the mask an own first axis, so that one mask may stand for all rows.

    Attention broadcasts such a mask, and sizes of the batch that the exporter took from it are taken from the ids
    instead. If anything else reads the mask, it is first repeated for all rows.
    """
    readers = [node for node in graph.graph.node if "mask" in node.input and node.op_type != "Attention"]
    spans = [{a.name: a.i for a in node.attribute} for node in readers]
    axes = [(span.get("start", 0), span.get("end", 4)) for span in spans]
    if all(n.op_type == "Shape" and axis in ((0, 1), (2, 3), (3, 4)) for n, axis in zip(readers, axes, strict=True)):
        for node, (start, _) in zip(readers, axes, strict=True):
            column = min(start, 1)
            node.input[0] = "input_ids"
            del node.attribute[:]
            node.attribute.extend(
                [onnx.helper.make_attribute("start", column), onnx.helper.make_attribute("end", column + 1)]
            )
    else:
        nodes = _repeated("mask", "mask_rows", "input_ids", rank=4)
        for node in graph.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = nodes[-1].output[0] if name == "mask" else name
        nodes += graph.graph.node
        del graph.graph.node[:]
        graph.graph.node.extend(nodes)
    (mask,) = (i for i in graph.graph.input if i.name == "mask")
    mask.type.tensor_type.shape.dim[0].dim_param = "masks"


def _give_each_row_its_rotations(graph: onnx.ModelProto) -> None:
    """Repeat cosines and sines that all rows of an encoder share, as the operator RotaryEmbedding wants them.

    The exporter puts this operator in the place of products that would broadcast them. A decoder is given the positions
    of each row, so it has cosines and sines of each row.
    """
    nodes: list[onnx.NodeProto] = []
    repeated: dict[str, str] = {}
    for node in graph.graph.node:
        if node.op_type == "RotaryEmbedding" and len(node.input) == 3:
            for place in (1, 2):
                name = node.input[place]
                if name not in repeated:
                    nodes += _repeated(name, f"{name}_rows", node.input[0], rank=3)
                    repeated[name] = nodes[-1].output[0]
                node.input[place] = repeated[name]
        nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _repeated(name: str, output: str, rows_of: str, rank: int) -> list[onnx.NodeProto]:
    """Nodes that repeat a tensor whose first axis is 1 as often as ``rows_of`` has rows; others stay as they are."""
    make = onnx.helper.make_node
    ones = onnx.helper.make_tensor(f"{output}_value", onnx.TensorProto.INT64, [rank - 1], [1] * (rank - 1))
    return [
        make("Shape", [rows_of], [f"{output}_count"], start=0, end=1),
        make("Constant", [], [f"{output}_ones"], value=ones),
        make("Concat", [f"{output}_count", f"{output}_ones"], [f"{output}_shape"], axis=0),
        make("Expand", [name, f"{output}_shape"], [output]),
    ]


def _without_transposes(graph: onnx.ModelProto, places: Places) -> Places:
    """Take out the nodes that transpose a parameter, so that it is stored transposed.

    ONNX Runtime would transpose it at each load, which takes time and a second copy.

    Returns:
        The initialisers that hold each parameter, and whether transposed.
    """
    held = {i.name: i for i in graph.graph.initializer}
    owners = {name: parameter for parameter, found in places.items() for name, _ in found}
    changed = {parameter: list(found) for parameter, found in places.items()}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.graph.node:
        name = node.input[0] if node.op_type == "Transpose" else ""
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [1, 0])
        if name not in owners or len(held[name].dims) != 2 or order != [1, 0]:
            kept.append(node)
            continue
        renamed[node.output[0]] = f"{name}.transposed"
        if (f"{name}.transposed", True) not in changed[owners[name]]:
            changed[owners[name]].append((f"{name}.transposed", True))
            turned = graph.graph.initializer.add()
            turned.CopyFrom(held[name])
            turned.name, turned.dims[:] = f"{name}.transposed", list(reversed(held[name].dims))
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    return {parameter: [place for place in found if place[0] in used] for parameter, found in changed.items()}


def _scored(model: RewardModel) -> dict[str, nn.Parameter]:
    """The parameters that a score depends on."""
    return {name: p for name, p in model.named_parameters() if name != "threshold"}


def _architecture(model: RewardModel, segment_ids: bool, adapters: Sequence[str]) -> str:
    """A hash of everything that determines the graph, except for the weights."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "architectures")}
    parts = {
        "config": config,
        "pooling": model.pooling,
        "neck": None if model.neck is None else repr(model.neck),
        "shapes": {name: list(p.shape) for name, p in _scored(model).items()},
        "segment_ids": segment_ids,
        "adapters": sorted(adapters),
        "interface": _INTERFACE,
        "opset": OPSET,
        "torch": torch.__version__,
    }
    if model.steps is not None:
        parts["steps"] = [model.steps, "probabilities" if model.has_probabilities else "logits"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _note(graph: onnx.ModelProto, key: str, value: str) -> None:
    entry = graph.metadata_props.add()
    entry.key, entry.value = key, value
