"""What holds a policy that finds an error of its reward model: nothing, a target of the KL, a bound on the KL.

    PYTHONPATH=tests python tests/bench/runaway.py --seeds 5

Each line is a run of ten steps by GRPO: the KL at its end, the score that it was trained to raise, people's win rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from support.hackable_worlds import demo_like, learn

WAYS: Mapping[str, Mapping[str, Any]] = {
    "fixed beta": {"kl_target": None, "beta": 0.04},
    "target 8": {},
    "target 8, bound 12": {"max_kl": 12.0},
    "fixed beta, bound 12": {"kl_target": None, "beta": 0.04, "max_kl": 12.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    torch.set_num_threads(1)
    print("| held by | seed | KL, nats | score | people's win rate | ended after step |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for seed in range(parser.parse_args().seeds):
        for name, changed in WAYS.items():
            done = learn(seed, demo_like(**changed))
            early = done.outcome.taken_back
            ended = len(done.outcome.history) if early is None else early.step - 1
            print(f"| {name} | {seed} | {done.kl:.1f} | {done.score:.2f} | {done.win_rate:.3f} | {ended} |", flush=True)


if __name__ == "__main__":
    main()
