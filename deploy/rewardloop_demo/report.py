"""Reports a demo as a table for the terminal, as a figure, and as results.json."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rewardloop_demo.record import GOAL, DemoRecord, PolicyJudge, RoundRecord, algorithm_name, series

FIGURE = "report.png"
RESULTS = "results.json"
FORMAT_VERSION = 1


def table(demo: DemoRecord) -> RenderableType:
    """The rounds as a table, with a summary below it."""
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
    grid.add_column("RM accuracy (95%)", justify="right")
    grid.add_column("change (95%)", justify="right")
    grid.add_column("policy", justify="right")
    grid.add_column("win rate vs. starter (95%)", justify="right")
    grid.add_column("signal to live p50/max", justify="right")
    for done in demo.rounds:
        grid.add_row(
            str(done.round),
            f"{done.seconds:.0f} s",
            f"{done.signals:,}",
            f"v{done.reward_version}",
            _share(done.reward_accuracy, done.reward_low, done.reward_high, places=3),
            "-" if math.isnan(done.reward_change) else _change(done),
            f"v{done.policy_version}",
            _share(done.win_rate, done.win_low, done.win_high),
            "-" if math.isnan(done.freshness_p50_s) else f"{done.freshness_p50_s:.0f} s / {done.freshness_max_s:.0f} s",
        )
    parts: list[RenderableType] = [grid]
    if demo.fruitless:
        parts.append(_fruitless(demo))
    return Group(*parts, Text(summary(demo)))


def _fruitless(demo: DemoRecord) -> Table:
    """The rounds of the trainer after which the live version stayed, each with its reasons."""
    grid = Table(title="Rounds without a new version", title_justify="left", header_style="bold", pad_edge=False)
    for name in ("round", "time", "signals"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("why")
    for each in demo.fruitless:
        why = f"{each.outcome}: {'; '.join(each.reasons)}"
        grid.add_row(f"{each.model} {each.number}", f"{each.seconds:.0f} s", f"{each.signals:,}", Text(why))
    return grid


def summary(demo: DemoRecord) -> str:
    """A few lines: accuracy beside its bounds, win rate beside its goal, rounds, judge, time and memory."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(demo.signal_kinds.items(), key=lambda k: -k[1]))
    lines = [
        f"Held-out choices ({demo.held_out_pairs:,}): starter RM {_number(demo.starter_accuracy)}, "
        f"last RM {_last_accuracy(demo)}, "
        f"bag of words {_number(demo.bag_of_words_accuracy)}, "
        f"ceiling under label noise {_number(demo.accuracy_ceiling)}.",
    ]
    measured = [r for r in demo.rounds if r.policy_swaps and not math.isnan(r.win_rate)]
    if measured:
        last = measured[-1]
        verdict = "above" if last.win_low > GOAL else "not wholly above"
        lines.append(
            f"Policy v{last.policy_version} beats the starter on {last.win_rate:.0%} of {last.win_prompts:,} "
            f"held-out prompts ({last.win_low:.2f}-{last.win_high:.2f}, {verdict} {GOAL:.2f})."
        )
    if demo.rounds:
        lines.append(f"Rounds: {'; '.join(_rounds_of(demo, model) for model in ('reward', 'policy'))}.")
    if demo.judge is not None:
        lines.append(_judge(demo.judge))
    usage = [f"{demo.seconds:.0f} s"]
    usage += [] if math.isnan(demo.cpu_seconds) else [f"{demo.cpu_seconds:.0f} s of CPU"]
    usage += [f"{demo.failed_requests} failed requests"]
    usage += [] if math.isnan(demo.peak_memory_gib) else [f"{demo.peak_memory_gib:.1f} GiB at the peak"]
    return "\n".join([*lines, f"Signals: {kinds or 'none'}.", f"Seed {demo.seed}: {', '.join(usage)}."])


def _rounds_of(demo: DemoRecord, model: str) -> str:
    """How many rounds of a model ended, and how."""
    last = demo.rounds[-1]
    promoted = last.reward_swaps if model == "reward" else last.policy_swaps
    outcomes = Counter(each.outcome for each in demo.fruitless if each.model == model)
    counts = [f"{promoted} promoted", *(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))]
    return f"{promoted + outcomes.total()} of the {model} model ({', '.join(counts)})".replace("policy model", "policy")


def _judge(judge: PolicyJudge) -> str:
    if not judge.is_own:
        return "Judge of policies: the live reward model, whose scores or signals have also trained them."
    shown = f", and agrees with at least {judge.accuracy_lower:.2f} of users' held-out choices ({judge.accuracy:.2f})"
    return (
        f"Judge of policies: a reward model of its own. It learned {judge.signals:,} signals, which taught nothing else"
        f"{'' if math.isnan(judge.accuracy) else shown}."
    )


def write(demo: DemoRecord, directory: Path) -> tuple[Path, Path]:
    """Write the figure and results.json into ``directory``, which is made if it is missing; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    results = directory / RESULTS
    content = {"format_version": FORMAT_VERSION, **_finite(asdict(demo))}
    results.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    from rewardloop_demo.figure import draw  # matplotlib takes a second to import

    return draw(demo, directory / FIGURE), results


def _last_accuracy(demo: DemoRecord) -> str:
    """The last reward model's accuracy with its interval, to three places."""
    found, low, high = (series(demo.rounds, f"reward_{name}")[1] for name in ("accuracy", "low", "high"))
    if not found:
        return _number(math.nan)
    return f"{found[-1]:.3f} ({low[-1]:.3f}-{high[-1]:.3f})" if low and high else _number(found[-1])


def _change(done: RoundRecord) -> str:
    """By how much the accuracy differs from that of the version before, and half of the width of its interval."""
    return f"{done.reward_change:+.3f} ±{(done.reward_change_high - done.reward_change_low) / 2:.3f}"


def _share(value: float, low: float, high: float, places: int = 2) -> str:
    """A share with its interval, as far as they were measured."""
    if math.isnan(value):
        return "-"
    return f"{value:.{places}f}" if math.isnan(low) else f"{value:.{places}f} ({low:.2f}-{high:.2f})"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _finite(value: object) -> dict[str, object]:
    """Replace NaN by None, because JSON has no NaN."""

    def clean(item: object) -> object:
        if isinstance(item, dict):
            return {key: clean(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [clean(entry) for entry in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    cleaned = clean(value)
    assert isinstance(cleaned, dict)
    return cleaned
