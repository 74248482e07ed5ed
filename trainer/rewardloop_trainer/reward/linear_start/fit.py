"""Fits the linear part of a reward model before its trunk learns: heads, and weights of tokens and phrases.

Source: Kumar et al. 2022 ("Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution"). A trunk
that learns under heads that know nothing is pulled away from what it knew. The fit is convex, so it needs no rate and
no number of passes, and its ridges are chosen by the likelihood of signals that are kept apart, in several folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import structlog
import torch
from torch import Tensor

from rewardloop_reward.phrases import phrases_of
from rewardloop_trainer.reward.examples import Example
from rewardloop_trainer.reward.linear_start.choose import choose_ridges
from rewardloop_trainer.reward.linear_start.compare import Centre, Statements, state_what_was_said, states_and_logits
from rewardloop_trainer.reward.linear_start.counts import mean_counts
from rewardloop_trainer.reward.linear_start.solve import LinearFit, Ridges, fit
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining

log = structlog.get_logger()

_LEAST_STATEMENTS = 20


def fit_linear_start(
    model: RewardModel, examples: Sequence[Example], pad: int, settings: RewardTraining
) -> dict[str, float]:
    """Fit heads, weights of tokens and phrases, and the threshold of labels, in place, on the examples.

    Each part is taken only if it raises the likelihood of the signals that are kept apart. Every head is fitted on its
    own bootstrap sample, and the mean of the heads on all signals.

    Args:
        model: The model; it needs `RewardModel.add_words` for tokens' weights and `RewardModel.add_phrases` likewise.
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
    ridges, gain = choose_ridges(said, model)
    fitted = _around_the_whole(said, ridges)
    of_mean = logits.mean(0) * fitted.scale + fitted.states @ (states.mean(0) / centre.deviation)
    of_mean = of_mean + _of_counts(fitted, said, [s.ids for s in sequences])
    _take(model, fitted, said, centre, logits.mean(0) - of_mean)
    figures = {"start_pairs": float(len(said.base) - said.is_label.sum()), "start_labels": float(said.is_label.sum())}
    figures |= {"start_gain": gain, "start_scale": float(fitted.scale.mean())}
    figures |= {"start_state_ridge": ridges.states, "start_word_ridge": ridges.words}
    figures |= {"start_phrase_ridge": ridges.phrases}
    log.info("linear start", **{name: round(value, 4) for name, value in figures.items()})
    return {name: value for name, value in figures.items() if value != math.inf}


def _around_the_whole(said: Statements, ridges: Ridges) -> LinearFit:
    """Fit each head on its own sample, and move all heads alike so that their mean is the fit to all statements.

    A head's sample has some two thirds of the statements, so the mean of a few such fits knows less than that of all.
    """
    whole = replace(
        said,
        base=torch.cat([said.base, said.base.mean(1, keepdim=True)], 1),
        weight=torch.cat([said.weight, said.judged.unsqueeze(-1)], 1),
    )
    fitted = fit(whole, ridges)

    def moved(part: Tensor) -> Tensor:
        return part[:-1] - part[:-1].mean(0) + part[-1]

    return LinearFit(*(moved(getattr(fitted, part.name)) for part in fields(LinearFit)))


def _of_counts(fitted: LinearFit, said: Statements, sequences: Sequence[Sequence[int]]) -> Tensor:
    """What words and phrases add to sequences of ids on average, (k,)."""
    found = fitted.words @ mean_counts(sequences, said.words.things)
    if fitted.phrases.any():
        found = found + fitted.phrases @ mean_counts((phrases_of(ids) for ids in sequences), said.phrases.things)
    return found


def _take(model: RewardModel, fitted: LinearFit, said: Statements, centre: Centre, raised: Tensor) -> None:
    """Give the model the fitted parts, and raise its logits by ``raised`` (k,).

    Comparisons do not tell the level of the logits, so it is raised to where the mean logit of all sequences was.
    """
    device = model.heads.weight.device
    scale = fitted.scale.to(device)
    with torch.no_grad():
        model.heads.weight.mul_(scale.unsqueeze(-1)).add_((fitted.states / centre.deviation).to(device))
        # The bias is in the first term, scaled like the rest.
        model.heads.bias.mul_(scale).add_(raised.to(device))
        for table, counted, weights in (
            (model.words, said.words, fitted.words),
            (model.phrases, said.phrases, fitted.phrases),
        ):
            if table is not None:
                table.weight.mul_(scale)
                table.weight[counted.things.to(device)] += weights.T.to(device)
        if said.is_label.any():
            of_mean = centre.logit * fitted.scale + fitted.states @ (centre.state / centre.deviation)
            of_prompts = _of_counts(fitted, said, centre.prompts)
            model.threshold.copy_(of_mean + of_prompts + raised + fitted.threshold)
