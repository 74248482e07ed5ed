"""The gradients of one loss over many sequences, in bounded memory and over several processes.

The loss may relate any sequences to each other, such as those of a ranking. Gradients are exact: outputs are computed
first, the loss gives the slope at each output, and each part's activations are then carried back by that slope. This is
GradCache (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardloop_trainer.data.token_batches import by_length
from rewardloop_trainer.learning.world import World


@dataclass(slots=True)
class _Part:
    """Sequences of one forward pass.

    Attributes:
        rows: Their places among this process's sequences; none in an idle pass.
        output: (rows, k); with its graph if that was kept.
        random: The state of torch's random numbers before the pass, for the same dropout in a second pass.
        has_graph: Whether activations were kept.
    """

    rows: list[int]
    output: Tensor
    random: tuple[Tensor, Tensor | None]
    has_graph: bool


def backward_in_parts(
    lengths: Sequence[int],
    forward: Callable[[Sequence[int]], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    token_budget: int,
    world: World,
    *,
    in_step: bool = False,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of a loss to the parameters that ``forward`` uses; each process adds those of its share.

    Activations of at most ``token_budget`` tokens are alive at a time, padding included, or of one sequence that is
    longer. Sequences beyond it are run twice: once for their outputs, once for their gradients.

    Args:
        lengths: Tokens of each sequence of the step, the same in every process.
        forward: Outputs (rows, k), on the CPU, of the sequences with the given indices, in one forward pass.
        loss_of: The loss, (), of the outputs of all sequences, (sequences, k). A parameter that it uses directly gets
            its gradient in the first process alone.
        token_budget: Most tokens whose activations are kept.
        world: The processes that share the sequences.
        in_step: Whether all processes have to make the same passes, because the model is divided among them. One with
            fewer sequences runs the shortest one instead, and learns nothing from it.

    Returns:
        The loss and the outputs of all sequences, without graphs.
    """
    shared = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    mine = world.mine(shared)
    plan = _plan(lengths, mine, token_budget)
    parts = _run(mine, forward, _alike(plan, world) if in_step else plan, spare=shared[0])
    width = parts[0].output.shape[1] if parts else 0
    width = int(world.largest(width))
    own = torch.zeros(len(mine), width)
    for part in parts:
        if not part.rows:
            continue
        own[part.rows] = part.output.detach()
    outputs = torch.zeros(len(lengths), width)
    outputs[shared] = world.gather_rows(own, len(lengths))
    outputs.requires_grad_()
    with torch.enable_grad():
        loss = loss_of(outputs)
    if world.is_first:
        loss.backward()  # type: ignore[no-untyped-call]
        slopes = outputs.grad
    else:
        (slopes,) = torch.autograd.grad(loss, outputs)
    assert slopes is not None
    for part in sorted(parts, key=lambda part: not part.has_graph):  # kept activations are freed first
        places = [mine[row] for row in part.rows] or [shared[0]]
        _carry_back(part, places, forward, slopes[places] if part.rows else torch.zeros_like(slopes[places]))
    return loss.detach(), outputs.detach()


def _plan(lengths: Sequence[int], mine: Sequence[int], token_budget: int) -> list[tuple[list[int], bool]]:
    """The passes of this process: their rows, and whether activations are kept, which they are as the budget allows."""
    plan, kept = list[tuple[list[int], bool]](), 0
    for rows in reversed(by_length([lengths[i] for i in mine], token_budget)):  # the longest are the dearest to repeat
        tokens = len(rows) * max(lengths[mine[row]] for row in rows)
        has_graph = not kept or kept + tokens <= token_budget
        kept += tokens if has_graph else 0
        plan.append((rows, has_graph))
    return plan


def _alike(plan: list[tuple[list[int], bool]], world: World) -> list[tuple[list[int], bool]]:
    """A plan of as many passes in every process, idle ones last; activations of a pass are kept in all or in none."""
    passes = int(world.largest(len(plan)))
    rows = [rows for rows, _ in plan] + [list[int]() for _ in range(passes - len(plan))]
    repeats = world.sum(torch.tensor([float(not has_graph) for _, has_graph in plan] + [0.0] * (passes - len(plan))))
    return [(own, not repeated) for own, repeated in zip(rows, repeats.tolist(), strict=True)]


def _run(
    mine: Sequence[int],
    forward: Callable[[Sequence[int]], Tensor],
    plan: Sequence[tuple[list[int], bool]],
    spare: int,
) -> list[_Part]:
    """Run this process's sequences, and ``spare`` in idle passes."""
    parts = list[_Part]()
    for rows, has_graph in plan:
        random = _random_state()
        with torch.set_grad_enabled(has_graph):
            output = forward([mine[row] for row in rows] or [spare])
        parts.append(_Part(rows, output, random, has_graph))
    return parts


def _carry_back(part: _Part, places: Sequence[int], forward: Callable[[Sequence[int]], Tensor], slope: Tensor) -> None:
    output = part.output
    if not part.has_graph:
        of_cpu, of_gpu = part.random
        with torch.random.fork_rng(devices=() if of_gpu is None else (torch.cuda.current_device(),)):
            torch.set_rng_state(of_cpu)
            if of_gpu is not None:
                torch.cuda.set_rng_state(of_gpu)
            output = forward(places)
    torch.autograd.backward([output], [slope])
    part.output = part.output.detach()


def _random_state() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
