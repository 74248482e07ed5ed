"""Shows how good the judge is: on the metrics page, and as a table at the end."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from rewardloop_trainer.evaluation.judge_quality import Bounded, JudgeQuality
from rewardloop_trainer.judging.metrics import JudgeMetrics


def show_quality(metrics: JudgeMetrics, quality: JudgeQuality, floor: float) -> None:
    """Show a measurement on the metrics page."""
    for name in ("agreement", "consistency", "first_shown", "longer", "overconfidence"):
        found = getattr(quality, name)
        metrics.show_figure(name, found.value, found.lower, found.upper)
    metrics.show_figure("calibration_error", quality.calibration_error)
    if quality.weight is not None:
        metrics.show_figure("weight", quality.weight.weight, quality.weight.lower, quality.weight.upper)
    metrics.shared.set(quality.shared)
    metrics.muted.set(quality.is_muted(floor))


def show(name: str, quality: JudgeQuality | None, floor: float, output: Literal["table", "json"]) -> None:
    """Print a measurement on standard output."""
    if quality is None:
        return
    if output == "json":
        about = {"judge": name, **asdict(quality), "floor": floor, "is_muted": quality.is_muted(floor)}
        print(json.dumps(_without_nan(about)))
        return
    table = Table(title=f"{name}: {quality.pairs:,} pairs, {quality.shared:,} judged by people too")
    for column in ("figure", "value", "95% interval", ""):
        table.add_column(column)
    rows: list[tuple[str, Bounded, str]] = [
        ("agreement with people", quality.agreement, "of decided pairs"),
        ("same choice in both orders", quality.consistency, "the others are ties"),
        ("votes for the response shown first", quality.first_shown, "0.5: no position bias"),
        ("longer responses, beyond people's choices", quality.longer, "0: no length bias"),
        ("stated confidence less agreement", quality.overconfidence, "0: calibrated in the mean"),
    ]
    for label, found, note in rows:
        is_known = not math.isnan(found.value)
        interval = f"{found.lower:.3f} to {found.upper:.3f}" if is_known else ""
        table.add_row(label, f"{found.value:.3f}" if is_known else "unknown", interval, note)
    error = quality.calibration_error
    table.add_row("calibration error", "unknown" if math.isnan(error) else f"{error:.3f}", "", "over ten bins")
    if (weight := quality.weight) is not None:
        note = f"MUTED: below {floor:g}" if weight.is_muted(floor) else "beside a person's signal"
        table.add_row("weight", f"{weight.weight:.3f}", f"{weight.lower:.3f} to {weight.upper:.3f}", note)
    Console().print(table)


def _without_nan(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
