"""Fits the linear part of a reward model before its trunk learns: the heads, and a weight for each token.

Source: Kumar et al. 2022 ("Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution"). A trunk
that learns under heads that know nothing is pulled away from what it knew. The fit is convex, so it needs no rate and
no number of passes, and its ridges are chosen by the likelihood of signals that are kept apart, in several folds.

The margin of a pair becomes s b + v (h_c - h_r) + u (n_c - n_r). Here b is the margin that the model had, h the states
that the heads read and n the tokens' counts; s, v and u are fitted. A thumb or rating says sigmoid(r - tau) of its
response's logit r, as in training, and tau is fitted with the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rewardloop_trainer.reward.examples import Example
from rewardloop_trainer.reward.linear_start.compare import (
    Centre,
    Statements,
    mean_counts,
    state_what_was_said,
    states_and_logits,
)
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining

log = structlog.get_logger()

# Ridges of the states, whose differences have deviation 1, and of the tokens' counts. An infinite one takes a part out.
_STATE_RIDGES = (math.inf, 10_000.0, 3_000.0, 1_000.0, 300.0, 100.0)
_WORD_RIDGES = (math.inf, 300.0, 100.0, 30.0, 10.0)
_LEAST_STATEMENTS = 20
# In nats. Less than that is noise, of the signals that are kept apart or of the search.
_LEAST_GAIN = 1e-3
_STEPS = 60
# A ridge is judged after fewer steps, each fit beginning at that of the ridge before.
_JUDGED_STEPS = 30


@dataclass(frozen=True, slots=True)
class LinearFit:
    """What `Statements` are multiplied with.

    ``scale`` and ``threshold`` are (k,), ``states`` (k, d) and ``words`` (k, t).
    """

    scale: Tensor
    states: Tensor
    words: Tensor
    threshold: Tensor

    def margins(self, of: Statements) -> Tensor:
        """The fitted margins, (n, k)."""
        found = of.base * self.scale + of.states @ self.states.T - of.is_label.unsqueeze(-1) * self.threshold
        if not self.words.any() and not self.words.requires_grad:
            return found
        return found.index_add(0, of.row, self.words.T[of.token] * of.count.unsqueeze(-1))


def fit_linear_start(
    model: RewardModel, examples: Sequence[Example], pad: int, settings: RewardTraining
) -> dict[str, float]:
    """Fit heads, tokens' weights and the threshold of labels, in place, on the examples.

    The states' and the tokens' part are each taken only if they raise the likelihood of the signals that are kept
    apart. Every head is fitted on its own bootstrap sample.

    Args:
        model: The model; it needs `RewardModel.add_words` for tokens' weights.
        examples: The signals; at most ``settings.linear_start`` of them are read.
        pad: Id of the padding token.
        settings: The bootstrap, the bound, the weights of kinds, and the seed that draws the signals that are read.

    Returns:
        Figures of the fit; empty if there are fewer than 20 statements.
    """
    found = list(examples)
    if len(found) > settings.linear_start:
        generator = torch.Generator().manual_seed(settings.seed)
        chosen = torch.randperm(len(found), generator=generator)[: settings.linear_start].sort().values
        found = [found[i] for i in chosen.tolist()]
    if sum(max(1, len(e.sequences) - 1) for e in found) < _LEAST_STATEMENTS:
        return {}
    was_training = model.training
    model.eval()
    sequences = [s for e in found for s in e.sequences]
    states, logits = states_and_logits(model, sequences, pad, 2 * settings.micro_batch_tokens)
    model.train(was_training)
    said, centre = state_what_was_said(found, states, logits, settings)
    if not said.is_apart.any() or not said.is_learned.any():
        return {}
    state_ridge, word_ridge, gain = choose_ridges(said, model.words is not None)
    fitted = fit(said, state_ridge, word_ridge)
    counts = mean_counts([s.ids for s in sequences], said.tokens)
    _take(model, fitted, said, centre, logits.mean(0), states.mean(0), counts)
    figures = {"start_pairs": float(len(said.base) - said.is_label.sum()), "start_labels": float(said.is_label.sum())}
    figures |= {"start_gain": gain, "start_scale": float(fitted.scale.mean())}
    figures |= {"start_state_ridge": state_ridge, "start_word_ridge": word_ridge}
    log.info("linear start", **{name: round(value, 4) for name, value in figures.items()})
    return {name: value for name, value in figures.items() if value != math.inf}


def _take(
    model: RewardModel,
    fitted: LinearFit,
    said: Statements,
    centre: Centre,
    level: Tensor,
    state: Tensor,
    counts: Tensor,
) -> None:
    """Give the model the fitted parts.

    Comparisons do not tell the level of the logits, so the mean logit of all sequences stays as it was, by ``level``,
    ``state`` and ``counts``, the means of their logits, states and tokens' counts.
    """
    with torch.no_grad():
        moved = level * fitted.scale + fitted.states @ (state / centre.deviation) + fitted.words @ counts
        model.heads.weight.mul_(fitted.scale.unsqueeze(-1)).add_(fitted.states / centre.deviation)
        # The bias is in the first term, scaled like the rest.
        model.heads.bias.mul_(fitted.scale).add_(level - moved)
        if model.words is not None:
            model.words.weight.mul_(fitted.scale)
            model.words.weight[said.tokens] += fitted.words.T
        if said.is_label.any():
            of_mean = centre.logit * fitted.scale + fitted.states @ (centre.state / centre.deviation)
            of_prompts = fitted.words @ mean_counts(centre.prompts, said.tokens)
            model.threshold.copy_(of_mean + of_prompts + level - moved + fitted.threshold)


def fit(
    said: Statements, state_ridge: float, word_ridge: float, start: LinearFit | None = None, steps: int = _STEPS
) -> LinearFit:
    """Minimise the weighted loss plus half the ridges times the squared parts, for all heads at once.

    Args:
        said: The statements.
        state_ridge: Ridge of the states' part; infinite: it stays 0.
        word_ridge: Ridge of the tokens' part, likewise.
        start: Where the search begins.
        steps: Most steps of the search.
    """
    heads, width = said.base.shape[1], said.states.shape[1]
    zeros = LinearFit(
        torch.ones(heads), torch.zeros(heads, width), torch.zeros(heads, len(said.tokens)), torch.zeros(heads)
    )
    start = zeros if start is None else start
    found = LinearFit(
        start.scale.clone(),
        (zeros if state_ridge == math.inf else start).states.clone(),
        (zeros if word_ridge == math.inf else start).words.clone(),
        start.threshold.clone(),
    )
    ridges = [(part, r) for part, r in ((found.states, state_ridge), (found.words, word_ridge)) if r != math.inf]
    learned = [found.scale, *(part for part, _ in ridges), *([found.threshold] if said.is_label.any() else [])]
    for part in learned:
        part.requires_grad_()
    optimizer = torch.optim.LBFGS(learned, max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (_losses(found, said) * said.weight).sum() + 0.5 * (found.scale - 1).square().sum()
        for part, ridge in ridges:
            loss = loss + ridge / 2 * part.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return LinearFit(*(part.detach() for part in (found.scale, found.states, found.words, found.threshold)))


def _losses(fitted: LinearFit, said: Statements) -> Tensor:
    """The loss of each statement under each head, (n, k), in nats."""
    margins = fitted.margins(said) - said.offset.unsqueeze(-1)
    return binary_cross_entropy_with_logits(margins, said.target.unsqueeze(-1).expand_as(margins), reduction="none")


def choose_ridges(said: Statements, has_words: bool) -> tuple[float, float, float]:
    """Choose the ridges of states and words by the signals that are kept apart, for one head without a bootstrap.

    Words have to add to what the states already tell, so they are chosen second, and the states' ridge once more.

    Returns:
        Both ridges, and by how much they lower the loss of those signals, in nats.
    """
    one = replace(said, base=said.base.mean(1, keepdim=True), weight=said.judged.unsqueeze(-1))
    folds = [f for f in range(len(said.is_apart)) if said.is_apart[f].any() and said.is_learned[f].any()]
    begun: dict[int, LinearFit] = {}

    def loss(state_ridge: float, word_ridge: float) -> float:
        total = weight = 0.0
        for fold in folds:
            learned = replace(one, weight=one.weight * said.is_learned[fold].unsqueeze(-1))
            begun[fold] = fit(learned, state_ridge, word_ridge, begun.get(fold), _JUDGED_STEPS)
            apart = said.judged * said.is_apart[fold]
            total += float((_losses(begun[fold], one).squeeze(-1) * apart).sum())
            weight += float(apart.sum())
        return total / weight if weight else math.inf

    none = loss(math.inf, math.inf)
    state_ridge, least = _best(_STATE_RIDGES, lambda ridge: loss(ridge, math.inf))
    if not has_words:
        return state_ridge, math.inf, none - least
    word_ridge, least = _best(_WORD_RIDGES, lambda ridge: loss(state_ridge, ridge))
    if word_ridge != math.inf:
        state_ridge, least = _best(_STATE_RIDGES, lambda ridge: loss(ridge, word_ridge))
    return state_ridge, word_ridge, none - least


def _best(ridges: Sequence[float], loss: Callable[[float], float]) -> tuple[float, float]:
    """Return the ridge with the least loss, and the loss. A smaller ridge has to gain `_LEAST_GAIN` on a larger one."""
    best, least = ridges[0], loss(ridges[0])
    for ridge in ridges[1:]:
        found = loss(ridge)
        if found < least - _LEAST_GAIN:
            best, least = ridge, found
    return best, least
