"""What a ranking of m responses should weigh beside a choice: 1, the square root of m - 1, or m - 1 comparisons.

Simulated people rank or choose answers by one hidden taste, with Plackett-Luce's noise and with errors that a whole
ranking has in common. A linear model learns from as many rankings as choices, once with each weight, and is asked for
the better one of two new answers. Its ridge is the best one for each weight, so that no weight is helped by it.

    python tests/bench/ranking_weight.py --seeds 10
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rewardloop_trainer.reward.losses import bradley_terry, plackett_luce, weighted_mean

Floats = npt.NDArray[np.float64]

FEATURES = 24
# The deviation of the difference of two answers, in nats: people who err by Plackett-Luce's noise alone are right in
# about three of four choices.
TASTE = 1.5
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
TESTED = 4_000
WEIGHTS: Mapping[str, Callable[[int], float]] = {
    "1": lambda _: 1.0,
    "sqrt(m - 1)": lambda m: math.sqrt(m - 1),
    "m - 1": lambda m: m - 1.0,
}


@dataclass(frozen=True, slots=True)
class People:
    """How people err beside Plackett-Luce's noise.

    Attributes:
        mood: The deviation of a taste of the moment, as a share of the common taste's. It is the same for all answers
            of a ranking.
        careless: The share of signals whose whole order is drawn by lot.
        attentive: How many of the first places are chosen with care; the rest of a ranking is drawn by lot.
    """

    mood: float = 0.0
    careless: float = 0.0
    attentive: int = 64


PEOPLE = {
    "Plackett-Luce's noise alone": People(),
    "a mood of half the taste": People(mood=0.5),
    "a mood as strong as the taste": People(mood=1.0),
    "three in ten by lot": People(careless=0.3),
    "two places with care": People(attentive=2),
}


def signals(people: People, taste: Floats, count: int, size: int, chance: np.random.Generator) -> Floats:
    """The features of ``count`` ordered sets of answers, best first: (count, size, features)."""
    features = chance.normal(size=(count, size, FEATURES))
    deviation = people.mood * np.linalg.norm(taste) / math.sqrt(FEATURES)
    own = taste + chance.normal(0.0, 1.0, (count, 1, FEATURES)) * deviation
    worth = (features * own).sum(2) + chance.gumbel(size=(count, size))
    order = np.argsort(-worth, axis=1)
    lot = chance.permuted(np.tile(np.arange(size), (count, 1)), axis=1)
    order = np.where(chance.random((count, 1)) < people.careless, lot, order)
    if people.attentive < size:
        order[:, people.attentive :] = chance.permuted(order[:, people.attentive :], axis=1)
    return np.take_along_axis(features, order[:, :, None], axis=1)


def fitted(rankings: Floats, choices: Floats, weight: float, ridge: float) -> Floats:
    """The taste that makes the signals likeliest, each ranking weighing so much beside a choice, (features,)."""
    ranked, chosen = torch.from_numpy(rankings), torch.from_numpy(choices)
    taste = torch.zeros(FEATURES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([taste], max_iter=60, history_size=10, line_search_fn="strong_wolfe")
    is_response = torch.ones(ranked.shape[:2], dtype=torch.bool)
    weights = torch.cat([torch.full((len(ranked),), weight), torch.ones(len(chosen))]).double().unsqueeze(1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        of_rankings = plackett_luce((ranked @ taste).unsqueeze(2), is_response)
        margins = chosen @ taste
        of_choices = bradley_terry(margins[:, :1], margins[:, 1:])
        loss = weighted_mean(torch.cat([of_rankings, of_choices]), weights) + ridge / 2 * taste.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return np.asarray(taste.detach().numpy())


def accuracies(people: People, rankings: int, choices: int, size: int, seed: int) -> dict[str, float]:
    """The share of new pairs that each weight's model orders as the common taste does, with its best ridge."""
    chance = np.random.default_rng((seed, rankings, choices, size))
    taste = chance.normal(size=FEATURES)
    taste *= TASTE / math.sqrt(2) / np.linalg.norm(taste)
    ranked = signals(people, taste, rankings, size, chance)
    chosen = signals(people, taste, choices, 2, chance)
    new = chance.normal(size=(TESTED, FEATURES))
    truth = new @ taste > 0
    return {
        name: max(float(((new @ fitted(ranked, chosen, of(size), ridge) > 0) == truth).mean()) for ridge in RIDGES)
        for name, of in WEIGHTS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rankings", type=int, default=60)
    parser.add_argument("--choices", type=int, nargs="+", default=[60])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| people err by | m | choices | {' | '.join(WEIGHTS)} |")
    print(f"| --- | ---: | ---: | {' | '.join('---:' for _ in WEIGHTS)} |")
    for name, people in PEOPLE.items():
        for size in options.sizes:
            for choices in options.choices:
                runs = [accuracies(people, options.rankings, choices, size, seed) for seed in range(options.seeds)]
                base = np.array([run["1"] for run in runs])
                cells = [f"{base.mean():.3f}"]
                for weight in list(WEIGHTS)[1:]:
                    gains = np.array([run[weight] for run in runs]) - base
                    error = gains.std(ddof=1) / math.sqrt(len(gains))
                    cells.append(f"{gains.mean():+.3f} ±{1.96 * error:.3f}")
                print(f"| {name} | {size} | {choices} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
