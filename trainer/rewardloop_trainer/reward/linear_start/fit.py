"""Fits the linear part of a reward model before its trunk learns: the heads, and a weight for each token.

Source: Kumar et al. 2022 ("Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution"). A trunk
that learns under heads that know nothing is pulled away from what it knew. The fit is convex, so it needs no rate and
no number of passes, and its ridges are chosen by the likelihood of signals that are kept apart.

The margin of a pair becomes s b + v (h_c - h_r) + u (n_c - n_r). Here b is the margin that the model had, h the states
that the heads read and n the tokens' counts; s, v and u are fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog
import torch
from torch import Tensor
from torch.nn.functional import softplus

from rewardloop_trainer.reward.examples import Example
from rewardloop_trainer.reward.linear_start.compare import Comparisons, compare, mean_counts, states_and_logits
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining

log = structlog.get_logger()

# Ridges of the states, whose differences have deviation 1, and of the tokens' counts. An infinite one takes a part out.
_STATE_RIDGES = (torch.inf, 3000.0, 1000.0, 300.0, 100.0)
_WORD_RIDGES = (torch.inf, 100.0, 30.0, 10.0)
_LEAST_PAIRS = 20
_STEPS = 60


@dataclass(frozen=True, slots=True)
class LinearFit:
    """``scale`` (k,), ``states`` (k, d) and ``words`` (k, t): what `Comparisons` are multiplied with."""

    scale: Tensor
    states: Tensor
    words: Tensor

    def margins(self, of: Comparisons) -> Tensor:
        """The fitted margins, (n, k)."""
        found = of.base * self.scale + of.states @ self.states.T
        return found.index_add(0, of.row, self.words.T[of.token] * of.count.unsqueeze(-1))


def fit_linear_start(
    model: RewardModel, examples: Sequence[Example], pad: int, settings: RewardTraining
) -> dict[str, float]:
    """Fit heads and tokens' weights, in place, on the pairs and rankings among the examples.

    The states' and the tokens' part are each taken only if they raise the likelihood of the pairs that are kept apart.
    Every head is fitted on its own bootstrap sample.

    Args:
        model: The model; it needs `RewardModel.add_words` for tokens' weights.
        examples: The signals; at most ``settings.linear_start`` of them are read.
        pad: Id of the padding token.
        settings: The bootstrap, the bound, and the seed that draws the signals that are read.

    Returns:
        Figures of the fit; empty if there are fewer than 20 pairs.
    """
    found = [e for e in examples if e.kind in ("pair", "ranking")]
    if len(found) > settings.linear_start:
        generator = torch.Generator().manual_seed(settings.seed)
        chosen = torch.randperm(len(found), generator=generator)[: settings.linear_start].sort().values
        found = [found[i] for i in chosen.tolist()]
    if sum(len(e.sequences) - 1 for e in found) < _LEAST_PAIRS:
        return {}
    was_training = model.training
    model.eval()
    sequences = [s for e in found for s in e.sequences]
    states, logits = states_and_logits(model, sequences, pad, 2 * settings.micro_batch_tokens)
    model.train(was_training)
    compared, deviation = compare(found, states, logits, settings)
    if not compared.is_apart.any() or not compared.is_learned.any():
        return {}
    state_ridge, word_ridge, gain = _ridges(compared, model.words is not None)
    fitted = fit(compared, state_ridge, word_ridge)
    _take(model, fitted, compared.tokens, deviation)
    with torch.no_grad():  # comparisons do not tell the level of the logits, so it stays
        counts = mean_counts(sequences, compared.tokens)
        level = logits.mean(0) * fitted.scale + fitted.states @ (states.mean(0) / deviation) + fitted.words @ counts
        # The bias is in the first term, scaled like the rest.
        model.heads.bias.mul_(fitted.scale).add_(logits.mean(0) - level)
    figures = {"start_pairs": float(len(compared.base)), "start_gain": gain, "start_scale": float(fitted.scale.mean())}
    figures |= {"start_state_ridge": state_ridge, "start_word_ridge": word_ridge}
    log.info("linear start", **{name: round(value, 4) for name, value in figures.items()})
    return {name: value for name, value in figures.items() if value != torch.inf}


def _take(model: RewardModel, fitted: LinearFit, tokens: Tensor, deviation: Tensor) -> None:
    """Give the model the fitted parts."""
    with torch.no_grad():
        model.heads.weight.mul_(fitted.scale.unsqueeze(-1)).add_(fitted.states / deviation)
        if model.words is not None:
            model.words.weight.mul_(fitted.scale)
            model.words.weight[tokens] += fitted.words.T


def fit(compared: Comparisons, state_ridge: float, word_ridge: float) -> LinearFit:
    """Minimise the weighted Bradley-Terry loss plus half the ridges times the squared parts, for all heads at once."""
    heads, width = compared.base.shape[1], compared.states.shape[1]
    found = LinearFit(torch.ones(heads), torch.zeros(heads, width), torch.zeros(heads, len(compared.tokens)))
    ridges = ((found.states, state_ridge), (found.words, word_ridge))
    learned = [found.scale, *(part for part, ridge in ridges if ridge != torch.inf)]
    for part in learned:
        part.requires_grad_()
    optimizer = torch.optim.LBFGS(learned, max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (softplus(-found.margins(compared)) * compared.weight).sum()
        loss = loss + 0.5 * (found.scale - 1).square().sum()
        for part, ridge in ridges:
            if ridge != torch.inf:
                loss = loss + ridge / 2 * part.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return LinearFit(*(part.detach() for part in (found.scale, found.states, found.words)))


def _ridges(compared: Comparisons, has_words: bool) -> tuple[float, float, float]:
    """Choose the ridges of states and words by the pairs that are kept apart.

    Returns:
        Both ridges, and by how much they lower the loss of those pairs, in nats.
    """
    learned = replace(compared, weight=compared.weight * compared.is_learned.unsqueeze(-1))

    def loss(state_ridge: float, word_ridge: float) -> float:
        margins = fit(learned, state_ridge, word_ridge).margins(compared).mean(1)
        return float(softplus(-margins)[compared.is_apart].mean())

    none = loss(torch.inf, torch.inf)
    words = _WORD_RIDGES if has_words else (torch.inf,)
    by_word = {ridge: loss(torch.inf, ridge) for ridge in words}
    word_ridge = min(by_word, key=lambda ridge: by_word[ridge])
    by_state = {ridge: loss(ridge, word_ridge) for ridge in _STATE_RIDGES}
    state_ridge = min(by_state, key=lambda ridge: by_state[ridge])
    return state_ridge, word_ridge, none - by_state[state_ridge]
