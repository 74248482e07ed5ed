"""Dawid and Skene's model: each item has a true class, and each person a matrix of what they call it.

Source: Dawid and Skene 1979, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm". It assumes
that people err independently of each other, and as often on every item of a class. Nobody is trusted beforehand, so a
majority of liars would be taken for the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewardloop_trainer.annotators.votes import Floats, Votes

_TINY = 1e-10


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """A fitted model of m items, p people and k classes.

    Attributes:
        posterior: (m, k), the probability of each class of each item.
        confusion: (p, k, k), the probability that a person says the second index where the first one is true.
        prior: (k,), how frequent each class is.
    """

    posterior: Floats
    confusion: Floats
    prior: Floats

    @property
    def accuracy(self) -> Floats:
        """(p,), the probability that a person is right about an item drawn by the prior."""
        found: Floats = np.einsum("k,pkk->p", self.prior, self.confusion)
        return found


def dawid_skene(
    votes: Votes, classes: int = 2, *, pseudo: float = 0.0, steps: int = 100, tolerance: float = 1e-8
) -> DawidSkene:
    """Fit the model by expectation maximisation, beginning at the shares of the votes.

    Args:
        votes: The votes; their choices are below ``classes``, and every item has one at least.
        classes: 2 without ties, 3 with them.
        pseudo: Votes that each person is taken to have given besides their own: right ones ``classes - 1`` times as
            often as each wrong one is. 0 gives the maximum likelihood, at which few votes say much.
        steps: Most steps.
        tolerance: The fit ends when a step raises the log-likelihood by less than this part of it.

    Raises:
        ValueError: If there is no vote, or an item without one.
    """
    m = len(votes.items)
    if not len(votes) or not np.bincount(votes.item, minlength=m).all():
        raise ValueError("every item needs a vote")
    said = np.zeros((m, classes))
    np.add.at(said, (votes.item, votes.choice), votes.weight)
    posterior: Floats = said / said.sum(1, keepdims=True)
    assumed = pseudo * (np.eye(classes) * (classes - 1) + (1 - np.eye(classes))) / (2 * (classes - 1))
    confusion, prior = _confusion(votes, posterior, assumed), np.maximum(posterior.mean(0), _TINY)
    before = -np.inf
    for _ in range(steps):
        told = np.log(confusion[votes.person, :, votes.choice]) * votes.weight[:, None]
        summed = [np.bincount(votes.item, weights=told[:, true], minlength=m) for true in range(classes)]
        logs = np.log(prior) + np.stack(summed, axis=1)
        most = logs.max(1, keepdims=True)
        total = most + np.log(np.exp(logs - most).sum(1, keepdims=True))
        posterior = np.exp(logs - total)
        confusion, prior = _confusion(votes, posterior, assumed), np.maximum(posterior.mean(0), _TINY)
        likelihood = float(total.sum())
        if likelihood - before < tolerance * max(1.0, abs(likelihood)):
            break
        before = likelihood
    return DawidSkene(posterior, confusion, prior)


def _confusion(votes: Votes, posterior: Floats, assumed: Floats) -> Floats:
    """Return the probability that each person says what of which class, (people, k, k).

    Of a class that a person has not met, the probabilities are equal for all that the person ever said.
    """
    p, classes = len(votes.people), posterior.shape[1]
    found = np.zeros((p, classes, classes))
    ever = np.zeros((p, classes), dtype=bool)
    for said in range(classes):
        told = votes.choice == said
        each = posterior[votes.item[told]] * votes.weight[told, None]
        ever[:, said] = np.bincount(votes.person[told], minlength=p) > 0
        for true in range(classes):
            found[:, true, said] = np.bincount(votes.person[told], weights=each[:, true], minlength=p)
    found = np.where(ever[:, None, :] | (assumed > 0), np.maximum(found + assumed, _TINY), 0.0)
    shares: Floats = found / np.maximum(found.sum(2, keepdims=True), _TINY)
    return shares
