"""choose: pure functions that decide which sampled candidates are shown, and with what probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

import numpy as np

from rewardloop_server.scoring.engine import Floats


@dataclass(frozen=True, slots=True)
class Choice:
    """Which candidates are shown. The probabilities are given the candidates and their scores.

    Attributes:
        shown: Indices of the candidates, in the order in which they are shown.
        set_probability: Probability with which this set is shown.
        show_probabilities: For each shown candidate the probability with which it is in the shown set.
        is_random: The set was drawn uniformly.
        information: What a comparison of the pair tells, in nats; see `expected_information`.
    """

    shown: tuple[int, ...]
    set_probability: float
    show_probabilities: tuple[float, ...]
    is_random: bool = False
    information: float = 0.0


def choose_best(scores: Sequence[float], count: int) -> Choice:
    """Choose the ``count`` highest scores, highest first. Of equal scores the first is taken."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return Choice(tuple(order[:count]), 1.0, (1.0,) * count)


def choose_uniform(heads: Floats, count: int, chance: Random) -> Choice:
    """Choose ``count`` candidates, each set with the same probability. ``heads``: scores, (candidates, heads)."""
    total = len(heads)
    shown = tuple(sorted(chance.sample(range(total), count)))
    information = float(expected_information(heads)[shown[0], shown[1]]) if count == 2 else 0.0
    return Choice(shown, 1 / math.comb(total, count), (count / total,) * count, True, information)


def choose_pair(heads: Floats, random_share: float, chance: Random) -> Choice:
    """Choose the pair with the most expected information, or with probability ``random_share`` any pair.

    Pairs with the same information are equally likely. If the heads never differ, all pairs have the same.

    Args:
        heads: Scores of at least two candidates, (candidates, heads).
        random_share: Probability with which the pair is drawn uniformly.
        chance: Source of random numbers.
    """
    information = expected_information(heads)
    total = len(heads)
    pairs = list(combinations(range(total), 2))
    gains = [float(information[pair]) for pair in pairs]
    # Equal texts, or a model with one head, give pairs that are equal up to rounding.
    most = max(gains) - 1e-9
    best = [pair for pair, gain in zip(pairs, gains, strict=True) if gain >= most]
    is_random = chance.random() < random_share
    shown = chance.choice(pairs if is_random else best)
    each, extra = random_share / len(pairs), (1 - random_share) / len(best)

    def in_any(candidate: int) -> float:
        return each * (total - 1) + extra * sum(candidate in pair for pair in best)

    probability = each + extra * (shown in best)
    return Choice(shown, probability, (in_any(shown[0]), in_any(shown[1])), is_random, float(information[shown]))


def expected_information(heads: Floats) -> Floats:
    """Return what a comparison of two candidates would tell about which head is right.

    It is the mutual information of the answer and the head, with all heads equally likely: the entropy of the mean
    probability less the mean entropy (BALD; Houlsby et al. 2011, equation 2). It is large if the heads are sure and
    disagree, and 0 if they agree, however even the comparison is.

    Args:
        heads: Scores, (candidates, heads). Each head's score is a Bradley-Terry strength: the head says that i beats j
            with probability sigmoid(score_i - score_j).

    Returns:
        The information in nats, (candidates, candidates).
    """
    difference = heads[:, None, :].astype(np.float64) - heads[None, :, :]
    # -log sigmoid(x) = log(1 + exp(-x)), which stays exact if the probability rounds to 0 or 1.
    win, lose = np.logaddexp(0.0, -difference), np.logaddexp(0.0, difference)
    p = np.exp(-win)
    each = p * win + (1 - p) * lose
    mean = p.mean(axis=-1)
    gain: Floats = np.maximum(_entropy(mean) - each.mean(axis=-1), 0.0)
    return gain


def _entropy(p: Floats) -> Floats:
    """Return the entropy of a coin with probability ``p``, in nats. 0 log 0 is 0."""
    safe = np.clip(p, 1e-300, 1.0)
    other = np.clip(1 - p, 1e-300, 1.0)
    entropy: Floats = -(p * np.log(safe) + (1 - p) * np.log(other))
    return entropy
