"""Simulated crowds: people of known reliability and habit who compare responses of known quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rewardloop_trainer.annotators.gestures import Gesture
from rewardloop_trainer.annotators.votes import Votes, make_votes


def votes_of_crowd(accuracies: Sequence[float], items: int, votes: int, seed: int) -> tuple[Votes, list[int]]:
    """Return votes of people who are right so often, ``votes`` on each of the items, and what is true of each item."""
    chance = np.random.default_rng(seed)
    truth = chance.integers(0, 2, items).tolist()
    rows = []
    for item in range(items):
        for person in chance.choice(len(accuracies), votes, replace=False).tolist():
            is_right = chance.random() < accuracies[person]
            rows.append((f"p{person}", ("q", f"a{item}", f"b{item}"), truth[item] if is_right else 1 - truth[item]))
    made = make_votes(rows)
    order = [int(what[1][1:]) for what in made.items]
    return made, [truth[i] for i in order]


def gesture(person: str, number: int, **changed: object) -> Gesture:
    """Return a signal of a person: nothing about it is known but what is given."""
    usual: Mapping[str, object] = {
        "key": f"{person}/{number}",
        "person": person,
        "source": "human",
        "caller": "app",
        "arrived_ms": 60_000 * number,
        "given_ms": None,
        "first_won": None,
        "longer_won": None,
        "button": "",
        "characters": 400,
        "content": hash((person, number)),
        "question": hash((person, number)),
    }
    return Gesture(**{**usual, **changed})  # type: ignore[arg-type]
