"""Models without weights, for tracing: the parameters have shapes and types but no memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import onnx_ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

Module = TypeVar("Module", bound=nn.Module)


def without_weights(model: Module) -> Module:
    """Copy a model, with float32 parameters that hold no values. Buffers are copied with theirs."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with mode:
        hollow: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty(p.shape, dtype=torch.float32), requires_grad=False)
            for p in model.parameters()
        }
    return copy.deepcopy(model, hollow)  # what the second argument holds is taken and not copied


def optimise(program: Any, module: nn.Module, names: Mapping[int, str]) -> dict[str, list[str]]:
    """Optimise an ONNX program that was traced without weights.

    Args:
        program: What `torch.onnx.export` returned without optimisation.
        module: The traced module.
        names: Names of the module's parameters, by their identity.

    Returns:
        The initialisers that hold each parameter. Their data are external, and lie nowhere yet.
    """
    values: list[tuple[str, Any, Any]] = []
    for name, value in program.model.graph.initializers.items():
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            values.append((names[id(module.get_parameter(name))], value, value.const_value))
            value.const_value = None  # otherwise the optimiser asks for its values
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of each initialiser without values
    try:
        program.optimize()
    finally:
        log.setLevel(level)
    held = {id(value) for value in program.model.graph.initializers.values()}
    places: dict[str, list[str]] = {}
    for name, value, tensor in values:
        places.setdefault(name, [])
        if id(value) in held:
            places[name].append(value.name)
            value.const_value = onnx_ir.ExternalTensor("", 0, 0, tensor.dtype, shape=tensor.shape, name=value.name)
    return places
