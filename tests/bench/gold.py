"""The gold experiment (after Gao et al. 2022): a hidden taste judges what was learned from its choices alone.

    python tests/bench/gold.py --algorithm ppo --seeds 3 --work DIR
    python tests/bench/gold.py --overoptimise --seeds 3 --work DIR
    python tests/bench/gold.py --report --work DIR --out tests/bench/results

The starter, and for each seed the users' choices and the reward model (the proxy), are made once and kept in DIR; so
are finished runs, so that a stopped experiment goes on. The judge reads what is sampled and nothing of it comes back.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import gold_judge  # noqa: F401 - before the trainer: see there
import torch
from gold_report import write_report
from gold_runs import AlgorithmName, Point, learn
from gold_world import GOOD, POOR, Labels, world_in

# No KL penalty, and steps enough to find what a poor proxy is wrong about.
OVEROPTIMISE: dict[str, Any] = {"beta": 0.0, "steps": 60}
CAUTION = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the worlds and the finished runs are kept")
    parser.add_argument("--algorithm", choices=get_args(AlgorithmName), default="ppo")
    parser.add_argument("--seeds", type=int, default=3, help="runs seeds first-seed, first-seed + 1 and so on")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--judged", type=int, default=400, help="held-out prompts that the judge compares")
    parser.add_argument("--overoptimise", action="store_true", help="no KL penalty, few choices, 25%% of them flipped")
    parser.add_argument("--change", type=json.loads, default={}, help="settings other than those tuned, as JSON")
    parser.add_argument("--name", default="", help="what a run with other settings is kept as")
    parser.add_argument("--report", action="store_true", help="run nothing: tables and plots of what is in --work")
    parser.add_argument("--out", type=Path, default=None, help="where the report goes (default: --work)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.report:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            if options.overoptimise:
                for kind, caution in (("mean", 0.0), ("cautious", CAUTION)):
                    changes = OVEROPTIMISE | {"rewards": {"caution": caution}} | options.change
                    name = f"overoptimised-{options.algorithm}-{kind}{options.name}"
                    run(options.work, name, options.algorithm, seed, POOR, changes, options.judged)
            else:
                name = f"{options.algorithm}{options.name}"
                run(options.work, name, options.algorithm, seed, GOOD, options.change, options.judged)
    write_report(options.work / "runs", options.out or options.work)


def run(
    work: Path,
    name: str,
    algorithm: AlgorithmName,
    seed: int,
    labels: Labels,
    changes: dict[str, Any],
    judged: int,
) -> None:
    kept = work / "runs" / f"{name}-{seed}.json"
    if kept.exists():
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    world = world_in(work, seed, labels, judged)
    print(f"{name}, seed {seed}: the proxy orders {world.proxy.accuracy:.3f} of unseen choices", flush=True)

    def show(point: Point) -> None:
        if point.step % 5 == 0:
            print(f"  step {point.step}: KL {point.kl:.2f}, gold {point.gold:.2f}, proxy {point.proxy:.2f}", flush=True)

    done = learn(world, algorithm, changes, show, is_watched=labels == POOR)
    kept.write_text(json.dumps(done.as_json(), indent=1))
    print(
        f"  gold win rate {done.win_rate:.3f} [{done.low:.3f}, {done.high:.3f}], gold {done.gold:.2f}, "
        f"proxy {done.proxy:.2f}, KL {done.kl:.1f}, {done.seconds:.0f} s ({done.cpu_seconds:.0f} s of CPU)",
        flush=True,
    )


if __name__ == "__main__":
    main()
