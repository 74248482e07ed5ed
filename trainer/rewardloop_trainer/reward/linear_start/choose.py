"""Chooses the ridges of the linear start by the likelihood of signals that are kept apart, in several folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rewardloop_trainer.reward.linear_start.compare import Statements
from rewardloop_trainer.reward.linear_start.solve import LinearFit, Ridges, fit, losses_of
from rewardloop_trainer.reward.model import RewardModel

# Ridges of the states, whose differences have deviation 1, and of counts. An infinite one takes a part out.
_STATE_RIDGES = (math.inf, 10_000.0, 3_000.0, 1_000.0, 300.0, 100.0)
_WORD_RIDGES = (math.inf, 300.0, 100.0, 30.0, 10.0)
_PHRASE_RIDGES = (math.inf, 300.0, 100.0, 30.0)
# In nats. Less than that is noise of the search.
_LEAST_GAIN = 1e-3
# A ridge is judged after few steps, each fit beginning at that of the ridge before.
_JUDGED_STEPS = 30


def choose_ridges(said: Statements, model: RewardModel) -> tuple[Ridges, float]:
    """Choose the ridges of the parts that the model has.

    Words and phrases have to add to what the states already tell, so they are chosen after them: first those of the two
    that tell more, then the others beside them, and the states' ridge once more.

    Returns:
        The ridges, and by how much they lower the loss of the signals that are kept apart, in nats.
    """
    judge = _Judge(said)
    if not float(judge.weight.sum()):
        return Ridges(), 0.0
    none = judge.losses(Ridges())
    ridges, losses = judge.best(Ridges(), "states", _STATE_RIDGES)
    of_states = ridges
    counted: dict[str, Sequence[float]] = {"phrases": _PHRASE_RIDGES} if model.phrases is not None else {}
    counted |= {"words": _WORD_RIDGES} if model.words is not None else {}
    while counted:
        found = {part: judge.best(ridges, part, choices) for part, choices in counted.items()}
        part = max(found, key=lambda each: judge.gain(losses, found[each][1])[0])
        if found[part][0] == ridges:
            break
        ridges, losses = found[part]
        del counted[part]
    if ridges != of_states:
        ridges, losses = judge.best(ridges, "states", _STATE_RIDGES)
    return ridges, judge.gain(none, losses)[0]


class _Judge:
    """Judges ridges by the signals that are kept apart, for one head without a bootstrap."""

    def __init__(self, said: Statements) -> None:
        self.said = said
        self.one = replace(said, base=said.base.mean(1, keepdim=True), weight=said.judged.unsqueeze(-1))
        self.folds = [f for f in range(len(said.is_apart)) if said.is_apart[f].any() and said.is_learned[f].any()]
        self.begun: dict[int, LinearFit] = {}
        self.cluster = said.cluster.repeat(len(self.folds))
        self.weight = torch.cat([torch.zeros(0), *(said.judged * said.is_apart[f] for f in self.folds)])

    def losses(self, ridges: Ridges) -> Tensor:
        """The losses of the statements, fold by fold, (folds n,)."""
        found = []
        for fold in self.folds:
            learned = replace(self.one, weight=self.one.weight * self.said.is_learned[fold].unsqueeze(-1))
            self.begun[fold] = fit(learned, ridges, self.begun.get(fold), _JUDGED_STEPS)
            found.append(losses_of(self.begun[fold], self.one).squeeze(-1))
        return torch.cat(found)

    def gain(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """By how much the mean loss of the statements apart falls, and the standard error of that, in nats."""
        difference, total = before - after, self.weight.sum()
        mean = (self.weight * difference).sum() / total
        of_clusters = torch.zeros(int(self.cluster.max()) + 1)
        of_clusters.index_add_(0, self.cluster, self.weight * (difference - mean))
        return float(mean), float(of_clusters.square().sum().sqrt() / total)

    def best(self, of: Ridges, part: str, choices: Sequence[float]) -> tuple[Ridges, Tensor]:
        """Choose the ridge of a part, the others as they are. A smaller ridge has to gain on a larger one.

        To take the part at all has to gain more than its standard error.
        """
        best = replace(of, **{part: choices[0]})
        losses = without = self.losses(best)
        for ridge in choices[1:]:
            tried = replace(of, **{part: ridge})
            found = self.losses(tried)
            gain, _ = self.gain(losses, found)
            total, error = self.gain(without, found)
            if gain > _LEAST_GAIN and total > error:
                best, losses = tried, found
        return best, losses
