"""The convex fit of the linear start: its parts, their ridges, and the search for the least loss.

The margin of a pair becomes s b + v (h_c - h_r) + u (n_c - n_r) + w (p_c - p_r). Here b is the margin that the model
had, h the states that the heads read, n the tokens' counts and p the phrases; s, v, u and w are fitted. A thumb or
rating says sigmoid(r - tau) of its response's logit r, as in training, and tau is fitted with the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rewardloop_trainer.reward.linear_start.compare import Statements

_STEPS = 60


@dataclass(frozen=True, slots=True)
class LinearFit:
    """What `Statements` are multiplied with.

    ``scale`` and ``threshold`` are (k,), ``states`` (k, d), ``words`` (k, t) and ``phrases`` (k, p).
    """

    scale: Tensor
    states: Tensor
    words: Tensor
    phrases: Tensor
    threshold: Tensor

    def margins(self, of: Statements) -> Tensor:
        """The fitted margins, (n, k)."""
        found = of.base * self.scale + of.states @ self.states.T - of.is_label.unsqueeze(-1) * self.threshold
        for counted, weights in ((of.words, self.words), (of.phrases, self.phrases)):
            if weights.requires_grad or weights.any():
                found = found + counted.times(weights.T)
        return found


@dataclass(frozen=True, slots=True)
class Ridges:
    """The ridges of a fit's parts. An infinite one takes its part out."""

    states: float = math.inf
    words: float = math.inf
    phrases: float = math.inf


def fit(said: Statements, ridges: Ridges, start: LinearFit | None = None, steps: int = _STEPS) -> LinearFit:
    """Minimise the weighted loss plus half the ridges times the squared parts, for all heads at once.

    Args:
        said: The statements.
        ridges: Of each part.
        start: Where the search begins.
        steps: Most steps of the search.
    """
    heads = said.base.shape[1]
    sizes = {"states": said.states.shape[1], "words": len(said.words.things), "phrases": len(said.phrases.things)}
    zeros = {name: torch.zeros(heads, size) for name, size in sizes.items()}
    start = LinearFit(torch.ones(heads), **zeros, threshold=torch.zeros(heads)) if start is None else start
    of_parts = {name: getattr(ridges, name) for name in sizes}
    begun = {n: (zeros[n] if ridge == math.inf else getattr(start, n)).clone() for n, ridge in of_parts.items()}
    found = LinearFit(start.scale.clone(), **begun, threshold=start.threshold.clone())
    held = [(begun[name], ridge) for name, ridge in of_parts.items() if ridge != math.inf]
    learned = [found.scale, *(part for part, _ in held), *([found.threshold] if said.is_label.any() else [])]
    for part in learned:
        part.requires_grad_()
    optimizer = torch.optim.LBFGS(learned, max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (losses_of(found, said) * said.weight).sum() + 0.5 * (found.scale - 1).square().sum()
        for part, ridge in held:
            loss = loss + ridge / 2 * part.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    parts = {name: part.detach() for name, part in begun.items()}
    return LinearFit(found.scale.detach(), **parts, threshold=found.threshold.detach())


def losses_of(fitted: LinearFit, said: Statements) -> Tensor:
    """The loss of each statement under each head, (n, k), in nats."""
    margins = fitted.margins(said) - said.offset.unsqueeze(-1)
    return binary_cross_entropy_with_logits(margins, said.target.unsqueeze(-1).expand_as(margins), reduction="none")
