"""Does it pay to choose which pair to show? Simulated people, and the policy service's own choice of pairs.

A prompt has `--candidates` candidates, each a vector; a person prefers one by a hidden linear taste, with Bradley-Terry
noise. The reward model is `--heads` linear heads, each drawn from N(0, 1) and fitted to all labels so far with a pull
back to where it was drawn (an anchored ensemble, Pearce et al. 2018), anew after every `--round` labels. Of each prompt
one pair is labelled: chosen by the server, or uniformly. Printed: how often the mean head orders
uniformly drawn pairs of new prompts as the hidden taste does, mean and standard error over seeds.

Prompts are of two kinds: in `plain` candidates are independent draws; in `alike` all but one in four repeat another
one but for a little noise, as a policy that is sure of itself repeats its answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from random import Random

import numpy as np
import numpy.typing as npt

from rewardloop_server.generate.choose import choose_pair

Vectors = npt.NDArray[np.float64]

SIZE = 32
CHECKED = 1_000


def candidates(kind: str, count: int, draw: np.random.Generator) -> Vectors:
    """(count, SIZE)."""
    found = draw.standard_normal((count, SIZE)) / np.sqrt(SIZE)
    if kind == "alike":
        distinct = max(2, count // 4)
        found = found[draw.integers(distinct, size=count)] + 0.05 * found
    return found


def fit(anchors: Vectors, differences: Vectors) -> Vectors:
    """Heads (heads, SIZE) that minimise the log-loss of ``differences`` (labels, SIZE), winner less loser, plus half
    the squared distance to ``anchors``: Newton's method, a step halved for each head whose loss it would raise."""

    def losses(heads: Vectors) -> Vectors:
        fitted: Vectors = (
            np.logaddexp(0.0, -heads @ differences.T).sum(axis=1) + ((heads - anchors) ** 2).sum(axis=1) / 2
        )
        return fitted

    heads = anchors.copy()
    for _ in range(20):
        p = 1 / (1 + np.exp(-heads @ differences.T))
        gradient = heads - anchors - (1 - p) @ differences
        curvature = np.einsum("hl,li,lj->hij", p * (1 - p), differences, differences, optimize=True) + np.eye(SIZE)
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        scale, before = np.ones((len(heads), 1)), losses(heads)
        while (is_worse := losses(heads - scale * step) > before + 1e-9).any() and scale.min() > 1e-6:
            scale[is_worse] /= 2
        heads = heads - scale * step
        if np.abs(scale * step).max() < 1e-4:
            break
    return heads


def run(kind: str, random_share: float, options: argparse.Namespace, seed: int) -> list[float]:
    """Accuracy after each number of labels in ``options.labels``."""
    draw, chance = np.random.default_rng(seed), Random(seed)
    taste = draw.standard_normal(SIZE) * options.taste
    pairs = [candidates(kind, 2, np.random.default_rng((seed, 7, i))) for i in range(CHECKED)]
    checked = np.stack([pair[0] - pair[1] for pair in pairs])
    anchors = draw.standard_normal((options.heads, SIZE))
    heads, seen, accuracies = anchors, [], []
    for label in range(max(options.labels)):
        said = candidates(kind, options.candidates, draw)
        first, second = choose_pair((said @ heads.T).astype(np.float32), random_share, chance).shown
        difference = said[first] - said[second]
        wins = draw.random() < 1 / (1 + np.exp(-difference @ taste))
        seen.append(difference if wins else -difference)
        if (label + 1) % options.round == 0:
            heads = fit(anchors, np.stack(seen))
        if label + 1 in options.labels:
            accuracies.append(float(((checked @ heads.mean(axis=0) > 0) == (checked @ taste > 0)).mean()))
    return accuracies


def needed(accuracies: Sequence[float], labels: Sequence[int], wanted: float) -> float:
    """Labels after which the accuracy is as wanted, between the measured ones; NaN beyond them."""
    if not accuracies[0] <= wanted <= max(accuracies):
        return float("nan")
    return float(np.interp(wanted, np.maximum.accumulate(accuracies), labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--round", type=int, default=10, help="labels after which the heads are fitted anew")
    parser.add_argument("--taste", type=float, default=3.0, help="how sure people are: scale of the hidden taste")
    parser.add_argument("--labels", type=int, nargs="+", default=[30, 60, 120, 240, 480])
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    print(f"{options.candidates} candidates, {options.heads} heads, {SIZE} features, {options.seeds} seeds")
    for kind in ("plain", "alike"):
        means = {}
        for name, share in (("uniform", 1.0), ("informative", 0.1)):
            found = np.array([run(kind, share, options, seed) for seed in range(options.seeds)])
            means[name] = found.mean(axis=0).tolist()
            error = found.std(axis=0, ddof=1) / np.sqrt(options.seeds)
            shown = "  ".join(
                f"{n}: {m:.3f}+-{e:.3f}" for n, m, e in zip(options.labels, means[name], error, strict=True)
            )
            print(f"{kind:6} {name:12} {shown}", flush=True)
        saved = needed(means["informative"], options.labels, means["uniform"][-1])
        print(f"{kind:6} uniform pairs' last accuracy after {saved:.0f} informative labels of {options.labels[-1]}")


if __name__ == "__main__":
    main()
