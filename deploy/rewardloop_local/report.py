"""The demo's outcome, as a table for the terminal, a figure, and results.json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

FIGURE = "report.png"
RESULTS = "results.json"
FORMAT_VERSION = 1
# The win rate that the policy's interval should lie above.
GOAL = 0.60


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What was live when a round ended, and how good it was; round 0 is the start.

    ``reward_accuracy``: share of noisy held-out choices that the reward model of ``reward_version`` agrees with.
    ``win_rate`` (``win_low``..``win_high``: its 95% interval): held-out prompts at which the policy of
    ``policy_version`` was liked better than the starter, by the hidden taste. ``reward_swaps`` and
    ``policy_swaps``: so far. ``freshness_p50_s``, ``freshness_max_s``: seconds from a signal's arrival to the first
    request served by a model that learned from it. NaN: not measured in this round.
    """

    round: int
    seconds: float
    signals: int
    reward_version: str
    reward_accuracy: float
    policy_version: str
    win_rate: float = math.nan
    win_low: float = math.nan
    win_high: float = math.nan
    reward_swaps: int = 0
    policy_swaps: int = 0
    freshness_p50_s: float = math.nan
    freshness_max_s: float = math.nan


@dataclass(frozen=True, slots=True)
class DemoRecord:
    """A whole demo. ``starter_accuracy`` and ``accuracy_ceiling`` (what the noise of the choices allows) are on the
    same held-out choices as the rounds' accuracies. ``signal_kinds``: acknowledged signals by kind.
    ``peak_memory_gib``: largest sum over all processes. ``algorithm``: by which the policy learned."""

    seed: int
    rounds: tuple[RoundRecord, ...]
    starter_accuracy: float
    accuracy_ceiling: float
    held_out_pairs: int
    held_out_prompts: int
    signal_kinds: dict[str, int]
    seconds: float
    peak_memory_gib: float = math.nan
    failed_requests: int = 0
    algorithm: str = "dpo"


def algorithm_name(demo: DemoRecord) -> str:
    """As it is written: PPO, online DPO."""
    *before, last = demo.algorithm.split("-")
    return " ".join([*before, last.upper()])


def table(demo: DemoRecord) -> RenderableType:
    """The rounds as a table with a summary below it."""
    grid = Table(
        title=f"What the loop learned, the policy by {algorithm_name(demo)}",
        title_justify="left",
        header_style="bold",
        pad_edge=False,
    )
    grid.add_column("round", justify="right")
    grid.add_column("time", justify="right")
    grid.add_column("signals", justify="right")
    grid.add_column("RM", justify="right")
    grid.add_column("RM accuracy", justify="right")
    grid.add_column("policy", justify="right")
    grid.add_column("win rate vs. starter (95%)", justify="right")
    grid.add_column("swaps RM/policy", justify="right")
    grid.add_column("signal to live p50/max", justify="right")
    for done in demo.rounds:
        grid.add_row(
            str(done.round),
            f"{done.seconds:.0f} s",
            f"{done.signals:,}",
            f"v{done.reward_version}",
            _number(done.reward_accuracy),
            f"v{done.policy_version}",
            "-" if math.isnan(done.win_rate) else f"{done.win_rate:.2f} ({done.win_low:.2f}-{done.win_high:.2f})",
            f"{done.reward_swaps}/{done.policy_swaps}",
            "-" if math.isnan(done.freshness_p50_s) else f"{done.freshness_p50_s:.0f} s / {done.freshness_max_s:.0f} s",
        )
    return Group(grid, Text(summary(demo)))


def summary(demo: DemoRecord) -> str:
    """A few plain lines: accuracy beside its bounds, win rate beside its goal, what it took."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(demo.signal_kinds.items(), key=lambda k: -k[1]))
    lines = [
        f"Held-out choices ({demo.held_out_pairs:,}): starter RM {_number(demo.starter_accuracy)}, "
        f"last RM {_number(_last(demo.rounds, 'reward_accuracy'))}, "
        f"ceiling under label noise {_number(demo.accuracy_ceiling)}.",
        f"Signals: {kinds or 'none'}.",
        f"Seed {demo.seed}: {demo.seconds:.0f} s, {demo.failed_requests} failed requests"
        + ("." if math.isnan(demo.peak_memory_gib) else f", {demo.peak_memory_gib:.1f} GiB at the peak."),
    ]
    measured = [r for r in demo.rounds if not math.isnan(r.win_rate)]
    if measured:
        last = measured[-1]
        verdict = "above" if last.win_low > GOAL else "not wholly above"
        lines.insert(
            1,
            f"Policy v{last.policy_version} beats the starter on {last.win_rate:.0%} of {demo.held_out_prompts:,} "
            f"held-out prompts ({last.win_low:.2f}-{last.win_high:.2f}, {verdict} {GOAL:.2f}).",
        )
    return "\n".join(lines)


def write(demo: DemoRecord, directory: Path) -> tuple[Path, Path]:
    """Write the figure and results.json into ``directory``, made if missing; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    results = directory / RESULTS
    content = {"format_version": FORMAT_VERSION, **_finite(asdict(demo))}
    results.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    from rewardloop_local.report_figure import draw  # matplotlib takes a second to load

    return draw(demo, directory / FIGURE), results


def series(rounds: Sequence[RoundRecord], name: str) -> tuple[list[int], list[float]]:
    """Signals and values of the rounds in which this was measured."""
    found = [(r.signals, float(getattr(r, name))) for r in rounds]
    kept = [(x, y) for x, y in found if not math.isnan(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def _last(rounds: Sequence[RoundRecord], name: str) -> float:
    values = series(rounds, name)[1]
    return values[-1] if values else math.nan


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _finite(value: object) -> dict[str, object]:
    """JSON has no NaN: what was not measured becomes null."""

    def clean(item: object) -> object:
        if isinstance(item, dict):
            return {key: clean(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [clean(entry) for entry in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    cleaned = clean(value)
    assert isinstance(cleaned, dict)
    return cleaned
