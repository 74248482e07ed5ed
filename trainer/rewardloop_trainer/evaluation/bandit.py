"""A contextual bandit that chooses among answers that were shown: the cheapest learner, as a baseline beside policies.

Its value model is a logistic regression over features of prompt and answer with a normal posterior (Laplace). Given the
candidates of a prompt, as `best_of` has them, a rule chooses one: the best in expectation but for a share epsilon that
is drawn at random, or the best by a draw of the posterior (Thompson 1933; Chapelle and Li 2011). It is evaluated from
the ledger, without being served: each fold of the prompts is chosen for by a model of the others, and what people said
of the answers is weighed by how likely the rule is to choose them (`off_policy_value`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from zlib import crc32

import numpy as np

from rewardloop.formats.messages import turns
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.data.logistic import sigmoid
from rewardloop_trainer.data.preferences import NoSupport, Prompt
from rewardloop_trainer.evaluation.likelihood import fit_logistic
from rewardloop_trainer.evaluation.off_policy import OffPolicy, judgements, off_policy_value
from rewardloop_trainer.reward.evaluate import Floats

# Features of a prompt with each of its candidates, (candidates, features).
Features: TypeAlias = Callable[[Prompt, Sequence[str]], Floats]

_FOLDS = 5
_DRAWS = 400
_WORDS = 32
_PRIOR_VARIANCE = 4.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A judged answer with the candidates beside which it stood.

    Attributes:
        features: (candidates, features), of each candidate.
        chosen: The place of the judged one.
        value: What people gave it, from 0 to 1.
        exposure: As of `Judgement.exposure`: 1 if every candidate was as likely to be judged.
        prompt: The prompt, which judgements have in common.
    """

    features: Floats
    chosen: int
    value: float
    exposure: float
    prompt: str


@dataclass(frozen=True, slots=True)
class ValueModel:
    """The log odds of people's liking, linear in the features, with a normal posterior.

    Attributes:
        mean: (features,).
        covariance: (features, features).
    """

    mean: Floats
    covariance: Floats

    def values(self, features: Floats) -> Floats:
        """Return the expected liking of each candidate by the mean, (candidates,)."""
        return sigmoid(features @ self.mean)

    def greedy(self, features: Floats, epsilon: float) -> Floats:
        """Return with what probability epsilon-greedy chooses each candidate, (candidates,); ties share."""
        best = features @ self.mean
        is_best = best == best.max()
        found: Floats = epsilon / len(best) + (1 - epsilon) * is_best / is_best.sum()
        return found

    def thompson(self, features: Floats, seed: int, draws: int = _DRAWS) -> Floats:
        """Return with what probability a draw of the posterior makes each candidate the best, (candidates,).

        It is estimated by ``draws``; no candidate is without probability.
        """
        chance = np.random.default_rng(seed)
        drawn = chance.multivariate_normal(np.zeros(len(self.mean)), self.covariance, draws, method="eigh")
        best = np.argmax((drawn + self.mean) @ features.T, axis=1)
        counts = np.bincount(best, minlength=len(features)) + 1 / len(features)
        found: Floats = counts / counts.sum()
        return found


def fit_values(features: Floats, values: Floats, exposures: Floats) -> ValueModel:
    """Fit the value model.

    Args:
        features: (n, features), of the judged answers.
        values: (n,), from 0 to 1.
        exposures: (n,), their weights.
    """
    k = features.shape[1]
    # The prior is rows of its own: a success and a failure at the point that gives a coefficient its variance.
    prior = np.repeat(np.eye(k), 2, axis=0) * np.sqrt(2 / _PRIOR_VARIANCE)
    rows = np.concatenate([features, prior])
    said = np.concatenate([values, np.tile([0.0, 1.0], k)])
    weights = np.concatenate([exposures / exposures.mean(), np.ones(2 * k)])
    mean = fit_logistic(rows, said, weights / weights.sum(), np.zeros(k))
    likely = sigmoid(rows @ mean)
    precision = (rows * (weights * likely * (1 - likely))[:, None]).T @ rows
    return ValueModel(mean, np.linalg.inv(precision + 1e-9 * np.eye(k)))


def evaluate_bandit(
    shown: Sequence[Shown], *, epsilon: float | None = None, seed: int = 0, most_weight: float = np.inf
) -> OffPolicy:
    """Estimate what people would give the bandit's choices, from judgements of answers that were shown at random.

    Args:
        shown: The judgements.
        epsilon: The share that is drawn at random; None for Thompson's rule.
        seed: Of the folds and the draws.
        most_weight: Larger weights are truncated to it.

    Raises:
        ValueError: If there are too few prompts for an interval, or none to learn from.
    """
    prompts = sorted({each.prompt for each in shown})
    fold = dict(zip(prompts, np.random.default_rng(seed).permutation(len(prompts)) % _FOLDS, strict=True))
    folds = np.array([fold[each.prompt] for each in shown])
    if len(set(folds.tolist())) < 2:
        raise ValueError("a bandit needs judgements of two prompts or more to learn from some and be tested on others")
    said = np.stack([each.features[each.chosen] for each in shown])
    values, exposures = (np.array([getattr(each, name) for each in shown]) for name in ("value", "exposure"))
    weights, own, expected = np.zeros(len(shown)), np.zeros(len(shown)), np.zeros(len(shown))
    for held in range(_FOLDS):
        learned = folds != held
        if learned.all() or not learned.any():
            continue
        model = fit_values(said[learned], values[learned], exposures[learned])
        for i in np.flatnonzero(~learned).tolist():
            candidates = shown[i].features
            chance = model.thompson(candidates, seed + i) if epsilon is None else model.greedy(candidates, epsilon)
            by_model = model.values(candidates)
            weights[i] = chance[shown[i].chosen] * len(candidates)
            own[i], expected[i] = by_model[shown[i].chosen], chance @ by_model
    return off_policy_value(
        values,
        weights,
        [each.prompt for each in shown],
        exposures=exposures,
        model_values=own,
        policy_values=expected,
        most_weight=most_weight,
    )


def shown_answers(
    events: Sequence[feedback_pb2.FeedbackEvent], features: Features
) -> tuple[list[Shown], dict[str, int]]:
    """Return the judged answers of events with two responses or more, and how many events are left out, by reason."""
    found: list[Shown] = []
    left_out: Counter[str] = Counter()
    for event in events:
        if len(event.responses) < 2:
            left_out["a single response leaves a bandit no choice"] += 1
            continue
        try:
            said = list(judgements(event))
        except NoSupport as error:
            left_out[str(error)] += 1
            continue
        prompt = turns(event.prompt)
        of = features(prompt, list(event.responses))
        found += [Shown(of, each.response, each.value, each.exposure, repr(prompt)) for each in said]
    return found, dict(left_out)


def text_features(prompt: Prompt, responses: Sequence[str]) -> Floats:
    """Return a bias, the log of the length, and hashed words of each response, also joined with the prompt's length.

    Each row has 2 + 2 * 32 features.
    """
    asked = np.log1p(sum(len(turn.content) for turn in prompt)) / 10
    rows = []
    for text in responses:
        words = np.zeros(_WORDS)
        for word in text.lower().split():
            words[crc32(word.encode()) % _WORDS] += 1
        words /= max(1.0, float(np.sqrt(words @ words)))
        rows.append(np.concatenate([[1.0, np.log1p(len(text)) / 10], words, asked * words]))
    return np.array(rows)
