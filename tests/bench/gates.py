"""How often each gate passes a candidate of known worth: the table of docs/explanation/gates.md.

    PYTHONPATH=tests python tests/bench/gates.py --runs 1000

Ten CPU minutes; the live test is drawn a quarter as often. The table's rates are in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np
from support.gate_worlds import DIFFERENCES, FIRST, GATES, RARER, VETOES, live_decision, ratchet, two_tastes_decided


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="candidates of each cell")
    runs: int = parser.parse_args().runs
    print_table("candidate differs by", GATES, runs)
    print_first(2 * runs)
    print_table("by the version before it differs by", VETOES, runs)
    ends = [ratchet(seed) for seed in range(runs // 10)]
    print(f"ratchet of 30: {np.mean([e.promoted for e in ends]):.2f} promoted, ", end="")
    print(f"{100 * np.mean([e.gained for e in ends]):+.2f} points, worst {100 * min(e.gained for e in ends):+.2f}")
    print(f"two tastes: decided {100 * two_tastes_decided(runs):.1f}%")
    rng = np.random.default_rng(0)
    alone = sum(live_decision({"p": 1.0}, {"p": 900}, rng) != "running" for _ in range(runs // 10))
    print(f"one person with 900 choices: decided {alone} of {runs // 10}")


def print_table(heading: str, gates: Mapping[str, Callable[[float, int], float]], runs: int) -> None:
    """Print how often each of the gates passes a candidate."""
    print(f"| {heading} | {' | '.join(f'{points:+d}' for points in DIFFERENCES)} |")
    print(f"| --- |{' ---: |' * len(DIFFERENCES)}")
    for name, pass_rate in gates.items():
        drawn = runs // 4 if name.startswith("live") else runs
        cells = (f"{100 * pass_rate(points / 100, drawn):.1f}" for points in DIFFERENCES)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()


def print_first(runs: int) -> None:
    """Print how often a first version passes by thumbs, of which few are of one kind."""
    print(f"| thumbs down | {' | '.join(map(str, RARER))} |")
    print(f"| --- |{' ---: |' * len(RARER)}")
    for name, pass_rate in FIRST.items():
        print(f"| {name} | {' | '.join(f'{100 * pass_rate(rarer, runs):.1f}' for rarer in RARER)} |", flush=True)
    print()


if __name__ == "__main__":
    main()
