"""Finds ids that are one hand: they judged the same pairs, and gave the same answers far more often than two people do.

Two people of accuracies a and b agree with probability a b + (1 - a)(1 - b) if they err independently. Two ids are
linked if they agree more often than that and a tenth more, and in more than three quarters, beyond what chance allows
among all pairs of ids that are compared. Linked ids, and those linked with them, are one hand.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

from rewardloop_trainer.annotators.habits import ALPHA, Flag
from rewardloop_trainer.annotators.tails import binomial_tail
from rewardloop_trainer.annotators.votes import Votes

_LEAST_SHARED = 15
_LEAST_BOUND, _ABOVE, _MOST_BOUND = 0.75, 0.1, 0.97
# An item that more people judged than this is left out: its pairs of people would be too many.
_MOST_VOTERS = 200
_MOST_PAIRS = 3_000_000


def find_hands(votes: Votes, accuracy: Mapping[str, float]) -> tuple[list[Flag], dict[str, str]]:
    """Return the flags, and the hand of each id that shares one: the least of its ids.

    Args:
        votes: The votes.
        accuracy: Of each person, as estimated; 0.75 for others.
    """
    shared, agreed = _compared(votes)
    tested = {pair: n for pair, n in shared.items() if n >= _LEAST_SHARED}
    links: list[tuple[str, str]] = []
    worst: dict[str, tuple[float, int, float, float, str]] = {}
    for (one, other), n in tested.items():
        names = votes.people[one], votes.people[other]
        a, b = (accuracy.get(name, 0.75) for name in names)
        bound = min(_MOST_BOUND, max(_LEAST_BOUND, a * b + (1 - a) * (1 - b) + _ABOVE))
        share = agreed[one, other] / n
        if share <= bound:
            continue
        probability = binomial_tail(agreed[one, other], n, bound)
        if probability < ALPHA / len(tested):
            links.append(names)
            for name, with_ in (names, names[::-1]):
                worst[name] = min(worst.get(name, (2.0, 0, 0.0, 0.0, "")), (probability, n, share, bound, with_))
    hands = joined(links)
    flags = [
        Flag("hands", name, n, share, bound, probability, f"the same answers as {with_}")
        for name, (probability, n, share, bound, with_) in sorted(worst.items())
    ]
    return flags, hands


def joined(links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return for each linked name the least of the names that it is linked with, directly or by others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one, other in links:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {name: root(name) for name in parent}


def _compared(votes: Votes) -> tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]:
    """Count for each two people the items that both voted on, and those on which they agree; last votes count."""
    by_item: dict[int, dict[int, int]] = defaultdict(dict)
    for person, item, choice in zip(votes.person.tolist(), votes.item.tolist(), votes.choice.tolist(), strict=True):
        by_item[item][person] = choice
    busy = {person for person, n in Counter(votes.person.tolist()).items() if n >= _LEAST_SHARED}
    shared: Counter[tuple[int, int]] = Counter()
    agreed: Counter[tuple[int, int]] = Counter()
    for said in by_item.values():
        voters = sorted(busy & said.keys())
        if len(voters) > _MOST_VOTERS or len(shared) > _MOST_PAIRS:
            continue
        for one, other in combinations(voters, 2):
            shared[one, other] += 1
            agreed[one, other] += said[one] == said[other]
    return shared, agreed
