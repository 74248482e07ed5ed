"""A model whose weights are divided among the processes of torchrun by torch's FSDP2: each holds a part of every one.

Before a layer runs, its weights are gathered, and behind its backward pass its gradients are added up and divided.
All processes take part in both, so that all have to make as many passes in the same order. A process with fewer rows
than others makes idle passes meanwhile, from which nothing is learned (`in_step`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

Rows = TypeVar("Rows")
Found = TypeVar("Found")

_SHARDS = "_shards_of_processes"
_NOTES = ("_is_fsdp_managed_module", "_fsdp_use_orig_params", "__composable_api")  # what torch leaves in a module


class _Root(nn.Module):
    """Gathers the weights outside of a model's layers while something is computed with the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


@dataclass(frozen=True, slots=True)
class _Shards:
    """How a model is divided.

    Attributes:
        root: What is to be called for a computation with the whole model; None if the model's own parts see to it.
        idle: Runs the model on anything, and returns a tensor that depends on all that learns.
        before: The modules of what is divided, each with its class and its hooks from before.
    """

    root: _Root | None
    idle: Callable[[], Tensor]
    before: Sequence[tuple[nn.Module, type[nn.Module], dict[str, Any]]]


def divide(
    model: nn.Module,
    part: nn.Module,
    layers: Iterable[nn.Module],
    idle: Callable[[], Tensor],
    device: torch.device,
) -> None:
    """Divide a model's weights among all processes, in place, and move them to the device. No process waits.

    Gradients are sums over the processes, and each process holds its part of them.

    Args:
        model: The model, with the same weights in every process.
        part: What is divided: the model itself, which is then computed with by `within` alone, or a module of it. The
            weights outside of it stay whole, and are moved to the device.
        layers: The modules of ``part`` whose weights are gathered apart from each other.
        idle: Runs the model on anything short, and returns a tensor that depends on all that learns.
        device: Where the parts are held.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    root = _Root(model) if part is model else None
    before = [(module, type(module), _hooks_of(module)) for module in part.modules()]
    for parameter in part.parameters():
        parameter.data = parameter.data.contiguous()  # no other is divided
    for module in (*layers, part if root is None else root):
        # The root's weights, too, which are the embeddings: they are often a large part of a small model.
        made = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    if root is None:
        for name, held in (*model.named_parameters(), *model.named_buffers()):
            if not isinstance(held, DTensor) and held.device != device:
                owner, _, own = name.rpartition(".")
                _put(model.get_submodule(owner), own, held.to(device))
    vars(model)[_SHARDS] = _Shards(root, idle, before)  # no submodule


def is_divided(model: nn.Module) -> bool:
    """Whether the model is divided among processes."""
    return _SHARDS in vars(model)


def within(model: nn.Module, compute: Callable[[], Found]) -> Found:
    """Compute something with a model; of a divided one, the weights outside of its layers are gathered meanwhile."""
    shards = _shards_of(model)
    return compute() if shards is None or shards.root is None else cast(Found, shards.root(compute))


def in_step(model: nn.Module, groups: Sequence[Rows]) -> Iterator[Rows]:
    """Yield the groups of rows that this process runs through a model, each in one pass.

    If the model is divided, idle passes follow while other processes have more groups. The caller makes a forward pass
    for each group, and where gradients are enabled the backward pass before it takes the next group.
    """
    shards = _shards_of(model)
    if shards is None:
        yield from groups
        return
    most = torch.tensor(len(groups))
    dist.all_reduce(most, dist.ReduceOp.MAX)
    yield from groups
    for _ in range(int(most) - len(groups)):
        found = within(model, shards.idle)
        if found.requires_grad:
            (found.float().sum() * 0.0).backward()  # type: ignore[no-untyped-call]


def is_part(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor alone."""
    return isinstance(tensor, DTensor)


def holder_of(tensor: Tensor) -> int:
    """The number of this process among those that hold the parts of a tensor; 0 if it is whole."""
    return tensor.device_mesh.get_local_rank() if isinstance(tensor, DTensor) else 0


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, in the same memory; the tensor itself if it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor. All processes make this call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_in_first(tensor: Tensor) -> Tensor:
    """The whole of a tensor in the first process, on the CPU if it was divided; the others get an empty one of it.

    All processes make this call.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    found = whole(tensor)
    return found.cpu() if dist.get_rank() == 0 else found.new_empty(0, device="cpu")


def as_held(values: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of values with a parameter's shape, if it has a part of the parameter, and on its device."""
    if not isinstance(parameter, DTensor) or isinstance(values, DTensor):
        return values
    values = values.to(parameter.device)
    return distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None).clone()


@torch.no_grad()
def make_whole(model: nn.Module) -> None:
    """Make a divided model whole in the first process, in the CPU's memory; the others are left without its weights.

    All processes make this call. A model that is not divided stays as it is.
    """
    shards = _shards_of(model)
    if shards is None:
        return
    del vars(model)[_SHARDS]
    for module, kind, hooks in shards.before:
        module.__class__ = kind
        vars(module).update(hooks)
        for name in [name for name in vars(module) if name.startswith(_NOTES)]:
            delattr(module, name)
    made: dict[Tensor, nn.Parameter] = {}  # tied ones once
    for module in model.modules():
        for name, held in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if held not in made:
                found = whole_in_first(held.detach())
                if found.numel() != held.numel():
                    found = torch.empty(held.shape, dtype=held.dtype, device="meta")
                made[held] = nn.Parameter(found.cpu() if not found.is_meta else found, held.requires_grad)
            _put(module, name, made[held])


def has_weights(model: nn.Module) -> bool:
    """Whether this process holds all weights of the model."""
    return not any(is_part(p) or p.is_meta for p in model.parameters())


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    held = module._parameters if name in module._parameters else module._buffers
    old = held[name]
    if isinstance(old, nn.Parameter) and not isinstance(tensor, nn.Parameter):
        old.data = tensor
    else:
        held[name] = tensor  # type: ignore[assignment]


def _shards_of(model: nn.Module) -> _Shards | None:
    return cast(_Shards | None, vars(model).get(_SHARDS))


def _hooks_of(module: nn.Module) -> dict[str, Any]:
    return {name: held.copy() for name, held in vars(module).items() if "_hooks" in name}
