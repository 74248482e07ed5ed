"""Who says which of two answers is better, and who writes a text: the two interfaces of whatever judges a policy.

A judge is a function. A reward model is one (`score_judge`), and so is a large language model behind an endpoint: it
takes comparisons and says who won each. It is asked in both orders, for most judges favour a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.evaluation.policy_gate import win_share
from rewardloop_trainer.reward.evaluate import Floats


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a prompt, in the order in which a judge sees them."""

    prompt: Prompt
    first: str
    second: str

    @property
    def turned(self) -> Comparison:
        """The same in the other order."""
        return Comparison(self.prompt, self.second, self.first)


# Says of each comparison how much of it the first answer wins: 1, 0, 1/2 for a tie, or a probability; None if it has no
# verdict, which is no tie. It may be slow, and it may raise what its maker documents.
PairJudge: TypeAlias = Callable[[Sequence[Comparison]], Sequence[float | None]]

# Answers each prompt with one text, as an endpoint of a language model does.
TextModel: TypeAlias = Callable[[Sequence[Prompt]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class NamedJudge:
    """A judge with the name that reports give it.

    Attributes:
        name: Such as "reward 4" or an endpoint's model.
        compare: The judge.
        has_place: Whether the order of the answers may sway it. If not, it is asked in one order alone.
    """

    name: str
    compare: PairJudge
    has_place: bool = True


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a judge said of n comparisons, both orders taken together.

    Attributes:
        shares: (n,), how much of each comparison the first answer wins, from 0 to 1; NaN without a verdict. Two orders
            that disagree make a tie.
        consistent: The share of comparisons with two verdicts whose winner is the same in both orders; NaN if it was
            asked in one order.
        first_wins: The mean share that the answer shown first wins over both orders; 1/2 without a bias of place.
        unjudged: How many have no verdict in one order or both.
    """

    shares: Floats
    consistent: float
    first_wins: float
    unjudged: int


def score_judge(name: str, score: Scorer) -> NamedJudge:
    """Return the judge that prefers the answer with the higher score; it scores each answer to a prompt once.

    An empty answer loses to any other.
    """

    def compare(comparisons: Sequence[Comparison]) -> list[float | None]:
        texts: dict[Prompt, dict[str, None]] = {}
        for each in comparisons:
            texts.setdefault(each.prompt, {}).update(dict.fromkeys((each.first, each.second)))
        scores = score(list(texts), [list(group) for group in texts.values()])
        known = {
            prompt: dict(zip(group, scored, strict=True))
            for (prompt, group), scored in zip(texts.items(), scores, strict=True)
        }
        return [win_share([known[each.prompt][each.first]], [known[each.prompt][each.second]]) for each in comparisons]

    return NamedJudge(name, compare, has_place=False)


def judged(judge: NamedJudge, comparisons: Sequence[Comparison]) -> Verdicts:
    """Ask a judge about every comparison, in both orders if its verdict may depend on the order.

    Raises:
        ValueError: If the judge gives another number of verdicts than comparisons, or one outside 0 to 1.
    """
    forward = _verdicts(judge, comparisons)
    if not judge.has_place:
        return Verdicts(forward, float("nan"), float("nan"), int(np.isnan(forward).sum()))
    turned = _verdicts(judge, [each.turned for each in comparisons])
    both = np.isfinite(forward) & np.isfinite(turned)
    winner, turned_winner = np.sign(forward - 0.5), np.sign(0.5 - turned)
    shares = np.where(winner == turned_winner, (forward + 1 - turned) / 2, 0.5)
    shares[~both] = np.nan
    same, places = (winner == turned_winner)[both], ((forward + turned) / 2)[both]
    return Verdicts(shares, _mean(same.astype(np.float64)), _mean(places), int((~both).sum()))


def _verdicts(judge: NamedJudge, comparisons: Sequence[Comparison]) -> Floats:
    said = judge.compare(comparisons)
    if len(said) != len(comparisons):
        raise ValueError(f"judge {judge.name}: gave {len(said)} verdicts of {len(comparisons)} comparisons")
    found = np.array([np.nan if each is None else each for each in said], dtype=np.float64)
    if ((found < 0) | (found > 1)).any():
        raise ValueError(f"judge {judge.name}: gave a verdict outside 0 to 1")
    return found


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
