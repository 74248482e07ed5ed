"""The processes that train one model together. Each samples and learns from its share; all take the same steps.

A process that runs alone is a world of one. Several are started by torchrun, which numbers them in the environment.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rewardloop_trainer.data.computing.shards import is_part
from rewardloop_trainer.data.computing.torchrun import started_processes
from rewardloop_trainer.learning.checkpoint import Checkpoint, CorruptCheckpoint, Keep, all_of, latest

Part = TypeVar("Part")
# Gradients that are sent at once, and how many times that on their way; a copy of all would be as large as the model.
BUCKET_VALUES = 2**23
BUCKETS_SENT = 2


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes that torchrun started, within the block; a process that was started alone stays alone.

    They communicate over gloo, and for GPU tensors over NCCL. Each process uses the GPU of its local rank.
    """
    if started_processes() == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        dist.barrier()  # no process may go while another still needs it
    finally:
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End the process. Under torchrun the threads of torch's communication sometimes abort an ordinary exit."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise SystemExit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class World:
    """This process among the others. Every method except `mine` waits for all of them."""

    def __init__(self) -> None:
        is_shared = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if is_shared else 0
        self.size = dist.get_world_size() if is_shared else 1

    @property
    def is_first(self) -> bool:
        """Whether this is the first process, the only one that writes files."""
        return self.rank == 0

    def mine(self, items: Sequence[Part]) -> Sequence[Part]:
        """This process's share: every ``size``-th item from ``rank`` on; it may be empty."""
        return items[self.rank :: self.size]

    def gather(self, mine: Sequence[Part]) -> list[Part]:
        """The parts of all processes, in the order of the items that `mine` shared out."""
        if self.size == 1:
            return list(mine)
        parts: list[Sequence[Part] | None] = [None] * self.size
        dist.all_gather_object(parts, mine)
        whole = [cast(Part, None)] * sum(len(part or ()) for part in parts)
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part or ()
        return whole

    def gather_rows(self, mine: Tensor, rows: int) -> Tensor:
        """As `gather`, for tensors: (my rows, ...) -> (``rows``, ...)."""
        if self.size == 1:
            return mine
        most = -(-rows // self.size)
        padded = mine.new_zeros(most, *mine.shape[1:])
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten(0, 1)[:rows]

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: float) -> float:
        """The largest of all processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.item()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each parameter's gradient by the sum over the processes; None if no process has one.

        Those of a divided model are sums already (`shards.divide`).

        Small gradients are copied into buckets, and a large one is summed in place, piece by piece. While a bucket is
        on its way, the next one is filled, so that the copies take at most `BUCKETS_SENT` buckets. torch's
        DistributedDataParallel is not used: it sums during each backward pass, and expects every process to make as
        many, each through all parameters. Here a process makes as many passes as its share of a step needs within the
        budget of tokens, perhaps none, and its gradients are summed once, when it has made them all.
        """
        if self.size == 1:
            return
        learning = [parameter for parameter in parameters if not is_part(parameter)]
        has_gradient = torch.tensor([float(p.grad is not None) for p in learning])
        dist.all_reduce(has_gradient)
        on_their_way: deque[_Sent] = deque()
        for bucket in _buckets([p for p, count in zip(learning, has_gradient.tolist(), strict=True) if count]):
            for values, is_copy in _values_of(bucket):
                work = dist.all_reduce(values, async_op=True)
                on_their_way.append(_Sent(work, values, bucket if is_copy else ()))
                if len(on_their_way) == BUCKETS_SENT:  # before the next one is filled
                    on_their_way.popleft().finish()
        for sent in on_their_way:
            sent.finish()

    def check_alike(self, fingerprint: str) -> None:
        """Raise ValueError if the processes were not all given the same weights, data and settings."""
        if len(found := set(self.gather([fingerprint]))) > 1:
            raise ValueError(f"{self.size} processes have {len(found)} different sets of weights, data and settings")

    def newest_checkpoint(self, directory: Path, keep: Keep = all_of) -> Checkpoint | None:
        """The newest checkpoint of the first process, sent to all; those of the other processes do not count.

        Args:
            directory: Where checkpoints are kept.
            keep: Maps each tensor, given its name, to what this process keeps of it.

        Raises:
            CorruptCheckpoint: If the checkpoint cannot be read.
        """
        if self.size == 1:
            return latest(directory, keep)
        found, about = None, list[Any]([None])
        if self.is_first:
            try:
                found = latest(directory)
            except CorruptCheckpoint as error:
                about = [str(error)]
        if found is not None:
            shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in found.tensors.items()}
            about = [(found.step, shapes, found.numbers, found.texts)]
        dist.broadcast_object_list(about)
        if about[0] is None:
            return None
        if isinstance(about[0], str):
            raise CorruptCheckpoint(about[0])
        step, shapes, numbers, texts = about[0]
        tensors = {}
        for name, (shape, dtype) in shapes.items():
            tensor = found.tensors[name] if found is not None else torch.empty(shape, dtype=dtype)
            dist.broadcast(tensor, 0)
            tensors[name] = keep(name, tensor)
        return Checkpoint(step, tensors, numbers, texts)

    def wait(self) -> None:
        """Wait until every process has made this call."""
        if self.size > 1:
            dist.barrier()


@dataclass(frozen=True, slots=True)
class _Sent:
    """Gradients on their way.

    Attributes:
        work: The sum over the processes.
        values: (n,), what is summed, in place.
        bucket: The parameters whose gradients are copies in ``values``, in their order; none if these are no copies.
    """

    work: Any
    values: Tensor
    bucket: Sequence[nn.Parameter]

    def finish(self) -> None:
        """Wait for the sum, and give the parameters their gradients."""
        self.work.wait()
        place = 0
        for parameter in self.bucket:
            assert parameter.grad is not None
            parameter.grad.copy_(self.values[place : place + parameter.numel()].view_as(parameter))
            place += parameter.numel()


def _values_of(bucket: Sequence[nn.Parameter]) -> Iterator[tuple[Tensor, bool]]:
    """What is sent of a bucket, (n,), and whether it is a copy; missing gradients are made."""
    gradients = []
    for parameter in bucket:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = gradient.contiguous()
        gradients.append(parameter.grad.view(-1))
    if len(bucket) > 1:
        yield torch.cat(gradients), True
    else:
        yield from ((piece, False) for piece in torch.split(gradients[0], BUCKET_VALUES))


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one type and device, in their order, whose gradients are sent together."""
    bucket, values = list[nn.Parameter](), 0
    for parameter in parameters:
        differs = bucket and (bucket[0].dtype, bucket[0].device) != (parameter.dtype, parameter.device)
        if bucket and (differs or values + parameter.numel() > BUCKET_VALUES):
            yield bucket
            bucket, values = [], 0
        bucket.append(parameter)
        values += parameter.numel()
    if bucket:
        yield bucket
