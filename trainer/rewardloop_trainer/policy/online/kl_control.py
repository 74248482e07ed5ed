"""What holds a run near its reference: the coefficient of the KL in the reward, and a bound on the KL.

The coefficient is fixed, or raised as long as the KL is above a target. It only makes distance cost reward: an error of
the reward model can pay more than that, and then the policy runs away in a few steps. So the KL of a step's own samples
is measured before the step learns from them. An update is thus judged by the samples of the weights that it made, and
is taken back if it went beyond the bound, which ends the run. Early stopping by KL is usual in PPO (`target_kl` of
OpenAI's Spinning Up), there against the policy that sampled; here it is against the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog
import torch
from torch import Tensor, nn

log = structlog.get_logger()

# A run that begins beyond the bound, because the bound was lowered or the reference changed, may go so much further.
_ROOM_BEYOND = 1.25
_KEPT = "kept."


@dataclass(slots=True)
class KlControl:
    """beta of the reward ``score - beta * KL``.

    Source of the adaptation: Ziegler et al. 2019, section 2.2. Unlike there, beta does not fall below what it was set
    to. A run begins near its reference, so that its first steps are below any target whatever beta is. A beta that
    falls meanwhile is small when the policy finds an error of the reward model, and rises too slowly then.

    Attributes:
        beta: The coefficient, in reward per nat.
        target: Wanted KL in nats per sequence; None keeps beta fixed.
        horizon: Sequences over which a KL that exceeds its target by 20% or more multiplies beta by about exp(0.2). A
            larger excess counts as 20%, so that one bad batch cannot change beta much. It is to be a small part of the
            run: a horizon beyond its end leaves beta nearly as it was.
    """

    beta: float
    target: float | None = None
    horizon: float = 10_000.0
    _least: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._least = self.beta

    def update(self, kl: float, sequences: int) -> None:
        """Adapt beta to the last rollout, whose mean KL is ``kl`` nats per sequence over ``sequences`` sequences."""
        if self.target is not None:
            error = min(max(kl / self.target - 1.0, -0.2), 0.2)
            # A step with more sequences than the horizon has at most halves or doubles beta.
            self.beta = max(self._least, self.beta * min(max(1.0 + error * sequences / self.horizon, 0.5), 2.0))


@dataclass(frozen=True, slots=True)
class TakenBack:
    """Says that a run ended early, because an update went beyond the bound and was taken back.

    Attributes:
        step: Steps learned, the last of which was taken back.
        steps: Steps of the whole run, had it gone on.
        kl: Mean KL after that step, in nats per response.
        limit: What it may be at most, in nats per response.
        kept_kl: Mean KL of the weights that are left, those after ``step - 1`` steps.
    """

    step: int
    steps: int
    kl: float
    limit: float
    kept_kl: float

    def __str__(self) -> str:
        return (
            f"learning ended early: after step {self.step} of {self.steps} the KL to the reference was {self.kl:.1f} "
            f"nats a response, above online.max_kl, which allows {self.limit:.3g} here; the step was taken back, and "
            f"the policy is that of {self.step - 1} steps, at {self.kept_kl:.1f} nats"
        )


@dataclass(slots=True)
class KlBound:
    """Holds a run within a KL to its reference, and keeps the newest weights that were measured within it.

    Attributes:
        most: The bound, in nats per response; None for none.
        limit: What the KL may be at most in this run: the bound, or more if the run began beyond it; 0 before the first
            measurement.
        kl: The KL of the kept weights, in nats per response.
    """

    most: float | None
    limit: float = 0.0
    kl: float = 0.0
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def admits(self, kl: float, policy: nn.Module) -> bool:
        """Whether the weights of ``policy`` keep to the bound. If they do, they are kept in place of earlier ones.

        Args:
            kl: Their mean KL to the reference on their own samples, in nats per response. NaN keeps to no bound.
            policy: The model; the parameters that learn are copied to the CPU's memory.
        """
        if self.most is None:
            return True
        if not self._kept:
            self.limit = max(self.most, _ROOM_BEYOND * kl)
            if kl > self.most:
                log.warning(
                    "the run begins beyond online.max_kl, and may go a quarter further", kl=kl, max_kl=self.most
                )
        elif not kl <= self.limit:
            return False
        self.kl = kl
        for name, parameter in _learning(policy):
            if name in self._kept:
                self._kept[name].copy_(parameter.detach())
            else:
                self._kept[name] = parameter.detach().to("cpu", copy=True)
        return True

    def take_back(self, policy: nn.Module) -> None:
        """Give ``policy`` the kept weights again."""
        with torch.no_grad():
            for name, parameter in _learning(policy):
                parameter.copy_(self._kept[name])

    def tensors(self) -> Mapping[str, Tensor]:
        """The kept weights, for a checkpoint."""
        return {f"{_KEPT}{name}": tensor for name, tensor in self._kept.items()}

    def numbers(self) -> Mapping[str, float]:
        """The limit and the KL, for a checkpoint."""
        return {"kl_limit": self.limit, "kept_kl": self.kl}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Take what a checkpoint has of `tensors` and `numbers`."""
        self.limit, self.kl = numbers["kl_limit"], numbers["kept_kl"]
        self._kept = {name.removeprefix(_KEPT): value for name, value in tensors.items() if name.startswith(_KEPT)}


def _learning(policy: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]
