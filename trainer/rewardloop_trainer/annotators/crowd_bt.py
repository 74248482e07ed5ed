"""A Bradley-Terry model of responses with a reliability for each person.

Source: Chen, Bennett, Collins-Thompson and Horvitz 2013, "Pairwise Ranking Aggregation in a Crowdsourced Setting"
(CrowdBT): person k says that i beats j with probability e_k sigmoid(s_i - s_j) + (1 - e_k) sigmoid(s_j - s_i).

It learns from every comparison of a response, with whatever other response it was compared, and so says something about
pairs that nobody judged twice. It assumes that responses to a prompt have one order. A ridge on the scores and a Beta
prior on each e_k keep both finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch

from rewardloop_trainer.annotators.votes import FIRST, Floats, Ints, Votes

_RIDGE = 0.5
_ALPHA, _BETA = 4.5, 1.5
_STEPS = 100


@dataclass(frozen=True, slots=True)
class CrowdBt:
    """A fitted model.

    Attributes:
        margin: (items,), s_first - s_second of each item of the votes.
        accuracy: (people,), e_k.
    """

    margin: Floats
    accuracy: Floats


def crowd_bt(votes: Votes, ridge: float = _RIDGE) -> CrowdBt:
    """Fit the model to the strict votes, by maximum a posteriori.

    Args:
        votes: The votes; their items are of `votes_of`: a prompt with two responses.
        ridge: Weight of half the squared scores, which are 0 on average.
    """
    first, second, responses = _responses(votes)
    kept = votes.choice <= 1
    person, item = torch.from_numpy(votes.person[kept]), votes.item[kept]
    sign = torch.from_numpy(np.where(votes.choice[kept] == FIRST, 1.0, -1.0))
    weight = torch.from_numpy(votes.weight[kept])
    one, other = torch.from_numpy(first[item]), torch.from_numpy(second[item])
    scores = torch.zeros(responses, dtype=torch.float64, requires_grad=True)
    start = float(np.log(_ALPHA / _BETA))
    logits = torch.full((len(votes.people),), start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores, logits], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        right = torch.sigmoid(sign * (scores[one] - scores[other]))
        accuracy = torch.sigmoid(logits)
        each = accuracy[person] * right + (1 - accuracy[person]) * (1 - right)
        loss = -(weight * each.clamp_min(1e-12).log()).sum() + ridge / 2 * scores.square().sum()
        log = torch.nn.functional.logsigmoid
        loss = loss - (_ALPHA * log(logits) + _BETA * log(-logits)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = scores.detach().numpy()
    return CrowdBt(found[first] - found[second], torch.sigmoid(logits).detach().numpy())


def cross_fitted_margins(votes: Votes, folds: int = 5, hands: Mapping[str, str] | None = None) -> Floats:
    """Return, for each vote, the margin of its item by a model that learned from other people's votes alone, (n,).

    It is 0 for an item whose responses nobody else compared with anything. Ids of one hand are in one fold.
    """
    of = hands or {}
    fold = np.array([fold_of(of.get(name, name), folds) for name in votes.people])
    margins = np.zeros(len(votes))
    for each in range(folds):
        of_fold = fold[votes.person] == each
        if of_fold.any() and not of_fold.all():
            margins[of_fold] = crowd_bt(votes.where(~of_fold)).margin[votes.item[of_fold]]
    return margins


def fold_of(person: str, folds: int) -> int:
    """Return the fold of a person, the same one in every round."""
    return int.from_bytes(blake2b(person.encode(), digest_size=8).digest(), "little") % folds


def _responses(votes: Votes) -> tuple[Ints, Ints, int]:
    """Number the responses, those to different prompts apart: of each item both, and how many there are."""
    numbers: dict[tuple[object, str], int] = {}
    ends: list[tuple[int, int]] = []
    for what in votes.items:
        prompt, first, second = what
        ends.append(
            (numbers.setdefault((prompt, first), len(numbers)), numbers.setdefault((prompt, second), len(numbers)))
        )
    found = np.asarray(ends, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1], len(numbers)
