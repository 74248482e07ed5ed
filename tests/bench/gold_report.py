"""Tables and plots of the runs of the gold experiment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from gold_curve import smooth, turning_point

matplotlib.use("Agg")
from matplotlib import pyplot


def write_report(runs: Path, out: Path) -> None:
    """A table, the runs' steps and a plot of each experiment of which there is a run in ``runs``."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(runs.glob("*.json"))}
    by_name: dict[str, list[dict[str, Any]]] = {}
    for stem, run in found.items():
        by_name.setdefault(stem.rpartition("-")[0], []).append(run)
    out.mkdir(parents=True, exist_ok=True)
    learned = {name: each for name, each in by_name.items() if not name.startswith("overoptimised")}
    chased = {name: each for name, each in by_name.items() if name.startswith("overoptimised")}
    for kind, of_kind, write_table, title in (
        ("gold", learned, table, "Learned from choices: what the judge and the proxy see"),
        ("gold_overoptimised", chased, chased_table, "No KL penalty, a poor proxy"),
    ):
        if not of_kind:
            continue
        (out / f"{kind}.md").write_text(write_table(of_kind) + "\n")
        steps = {f"{name}-{run['seed']}": _short(run) for name, runs_ in of_kind.items() for run in runs_}
        (out / f"{kind}.json").write_text(json.dumps(steps, indent=None))
        plot(of_kind, out / f"{kind}.png", title)
        print(write_table(of_kind))


def table(by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One line a run."""
    lines = [
        "| algorithm | seed | gold win rate [95%] | gold gain | proxy gain | KL, nats | seconds (CPU) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in by_name.items():
        for run in runs:
            lines.append(
                f"| {name} | {run['seed']} | {run['win_rate']:.3f} [{run['low']:.3f}, {run['high']:.3f}] | "
                f"{run['gold']:+.2f} | {run['proxy']:+.2f} | {run['kl']:.1f} | "
                f"{run['seconds']:.0f} ({run['cpu_seconds']:.0f}) |"
            )
    return "\n".join(lines)


def chased_table(by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One line a run: where gold was best, and what is left of it."""
    lines = [
        "| reward | seed | best gold gain (step) | gold gain at the end | kept | proxy then, at the end | KL, nats | "
        "a third lost, watch fired (steps; 0: never) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in by_name.items():
        for run in runs:
            turn = turning_point(run["points"])
            lines.append(
                f"| {name.removeprefix('overoptimised-')} | {run['seed']} | {turn['best']:+.2f} ({turn['step']}) | "
                f"{turn['last']:+.2f} | {turn['last'] / turn['best']:.2f} | "
                f"{turn['proxy_then']:+.2f}, {turn['proxy_last']:+.2f} | {run['points'][-1]['kl']:.1f} | "
                f"{turn['lost_third']}, {run['alarm_step']} |"
            )
    return "\n".join(lines)


def plot(by_name: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, title: str) -> None:
    """Gold (solid) and proxy (dashed) against sqrt(KL), a panel for each kind of run, a colour a seed."""
    figure, axes = pyplot.subplots(1, len(by_name), figsize=(4 * len(by_name), 3.6), sharey=True, squeeze=False)
    for axis, (name, runs) in zip(axes[0], by_name.items(), strict=True):
        for place, run in enumerate(runs):
            x = [math.sqrt(max(0.0, kl)) for kl in smooth([p["kl"] for p in run["points"]])]
            for what, style in (("gold", "-"), ("proxy", "--")):
                y = smooth([p[what] for p in run["points"]])
                axis.plot(x, y, style, color=f"C{place}", label=f"{what}, seed {run['seed']}", linewidth=1.4)
        axis.set_title(name.removeprefix("overoptimised-"))
        axis.set_xlabel("sqrt(KL to the starter), nats")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("score, in the starter's deviations")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _short(run: Mapping[str, Any]) -> dict[str, Any]:
    """Four digits are more than was measured."""
    points = [{k: round(v, 4) for k, v in point.items()} for point in run["points"]]
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in run.items()} | {"points": points}
