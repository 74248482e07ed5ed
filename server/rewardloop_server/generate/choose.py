"""choose: which of the sampled candidates are shown, and with what probability. Pure."""

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
    """``shown``: indices of candidates, in the order in which they are shown.

    ``set_probability``: that this set is shown, ``show_probabilities``: that each of the shown is in the set, both
    given the candidates and their scores. ``is_random``: drawn uniformly. ``information``: see `expected_information`.
    """

    shown: tuple[int, ...]
    set_probability: float
    show_probabilities: tuple[float, ...]
    is_random: bool = False
    information: float = 0.0


def choose_best(scores: Sequence[float], count: int) -> Choice:
    """The ``count`` highest scores, highest first; of equals the first."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return Choice(tuple(order[:count]), 1.0, (1.0,) * count)


def choose_uniform(heads: Floats, count: int, chance: Random) -> Choice:
    """Any ``count`` of the candidates, each set as likely as every other. heads: (candidates, heads) scores."""
    total = len(heads)
    shown = tuple(sorted(chance.sample(range(total), count)))
    information = float(expected_information(heads)[shown[0], shown[1]]) if count == 2 else 0.0
    return Choice(shown, 1 / math.comb(total, count), (count / total,) * count, True, information)


def choose_pair(heads: Floats, random_share: float, chance: Random) -> Choice:
    """The pair with the most expected information, of equals any; for ``random_share`` of the calls any pair at all.

    heads: (candidates, heads) scores, of at least two candidates. Heads that never differ make every pair equal.
    """
    information = expected_information(heads)
    total = len(heads)
    pairs = list(combinations(range(total), 2))
    gains = [float(information[pair]) for pair in pairs]
    # Equal up to rounding: texts that are the same, or a model with one head.
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
    """What a comparison of two candidates would tell about which head is right, in nats, (candidates, candidates).

    heads: (candidates, heads) scores, each head's a Bradley-Terry strength: it says that i beats j with probability
    sigmoid(score_i - score_j). The mutual information of the answer and the head, heads equally likely, is the
    entropy of the mean probability less the mean entropy (BALD; Houlsby et al. 2011, equation 2). Large where heads are
    sure and disagree; 0 where they agree, however even the comparison.
    """
    difference = heads[:, None, :].astype(np.float64) - heads[None, :, :]
    # -log sigmoid(x) = log(1 + exp(-x)): exact where the probability rounds to 0 or 1.
    win, lose = np.logaddexp(0.0, -difference), np.logaddexp(0.0, difference)
    p = np.exp(-win)
    each = p * win + (1 - p) * lose
    mean = p.mean(axis=-1)
    gain: Floats = np.maximum(_entropy(mean) - each.mean(axis=-1), 0.0)
    return gain


def _entropy(p: Floats) -> Floats:
    """Of a coin, in nats; 0 log 0 is 0."""
    safe = np.clip(p, 1e-300, 1.0)
    other = np.clip(1 - p, 1e-300, 1.0)
    entropy: Floats = -(p * np.log(safe) + (1 - p) * np.log(other))
    return entropy
