"""AdamW for weights in float32 and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewardloop_trainer.data.computing.shards import holder_of, is_part, local

_PART = 2**24  # values that are updated at once, which bounds the temporary tensors of a large embedding

_SEEDS_APART = 2**40  # between those of two processes, which is beyond any step's


def adamw(
    groups: Iterable[Mapping[str, Any]], *, learning_rate: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """Make AdamW for groups of parameters, each with its ``params``, ``weight_decay`` and, if it has its own, ``lr``.

    Moments are held in float32. Weights in bfloat16 are rounded up or down at random, so that an update which is
    smaller than the distance of two bfloat16 values is made in the mean; rounding to the nearest would lose it.
    """
    made = [part for group in groups for part in _apart(group) if part["params"]]
    if all(p.dtype == torch.float32 for group in made for p in group["params"]):
        return torch.optim.AdamW(made, lr=learning_rate, betas=betas, fused=True)
    return RoundingAdamW(made, learning_rate, betas)


def _apart(group: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The group's whole parameters, and those of which each process has a part: no operation takes both."""
    for are_parts in (False, True):
        yield {**group, "params": [p for p in group["params"] if is_part(p) == are_parts]}


def temporary_bytes(parameters: Sequence[Tensor]) -> int:
    """The bytes of the temporary tensors of a step."""
    largest = max((p.numel() for p in parameters if p.dtype != torch.float32), default=0)
    return 6 * 4 * min(largest, _PART)


class RoundingAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with moments in float32 and stochastic rounding of weights in bfloat16.

    The random numbers depend on the step and the parameter's place alone, so that processes which train one model
    together, and a run that goes on from a checkpoint, round alike. Each part of a divided parameter has its own.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have gradients."""
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                place += 1
                if parameter.grad is not None:
                    self._update(parameter, group, place)

    def _update(self, parameter: nn.Parameter, group: Mapping[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["step"] += 1
        steps = int(state["step"].item())
        seed = steps * 1_000_003 + place + _SEEDS_APART * holder_of(parameter)
        generator = torch.Generator(parameter.device).manual_seed(seed)
        gradient = parameter.grad
        assert gradient is not None
        tensors = [local(t) for t in (parameter.data, gradient, state["exp_avg"], state["exp_avg_sq"])]
        for weight, slope, mean, square in zip(*(torch.split(t.view(-1), _PART) for t in tensors), strict=True):
            _update_part(weight, slope.float(), mean, square, group, steps, generator)


def _update_part(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    group: Mapping[str, Any],
    steps: int,
    generator: torch.Generator,
) -> None:
    """Update a flat part of a parameter in place; all tensors are (values,)."""
    rate, (first, second) = group["lr"], group["betas"]
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    deviation = (square / (1 - second**steps)).sqrt_().add_(group["eps"])
    updated = weight.float() * (1 - rate * group["weight_decay"])
    updated.addcdiv_(mean, deviation, value=-rate / (1 - first**steps))
    weight.copy_(_at_random(updated, generator) if weight.dtype == torch.bfloat16 else updated)


def _at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 values to neighbouring bfloat16 values, each with the probability that keeps the mean."""
    noise = torch.randint(0, 2**16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    # bfloat16 is the upper half of a float32: the noise carries into it as often as the lower half is large.
    return values.view(torch.int32).add(noise).bitwise_and_(-(2**16)).view(torch.float32)
