"""Writes what was found: the report, TensorBoard scalars, and metrics for a collector of text files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from rewardloop_trainer.reports.page import PAGE, write_report
from rewardloop_trainer.reports.parts import Report

METRICS = "metrics.prom"


class Stages:
    """Says on standard error what is being measured, a line for each stage."""

    def __call__(self, what: str) -> None:
        print(f"rewardloop evaluate: {what}", file=sys.stderr, flush=True)


def write_outcome(report: Report, directory: Path, model: str, version: str) -> Path:
    """Write all files. Returns the page. Raises OSError.

    Args:
        report: The report.
        directory: Where they go.
        model: The kind of model, a label of the metrics.
        version: What was evaluated, another label.
    """
    write_report(report, directory)
    _write_metrics(report.figures, directory / METRICS, model, version)
    _write_events(report.figures, directory, int(version) if version.isdigit() else 0)
    return directory / PAGE


def _write_metrics(figures: Mapping[str, float], path: Path, model: str, version: str) -> None:
    registry = CollectorRegistry()
    gauge = Gauge(
        "rewardloop_evaluation",
        "Figures of the last evaluation, by their name in report.json.",
        ("model", "version", "figure"),
        registry=registry,
    )
    for name, value in figures.items():
        gauge.labels(model=model, version=version, figure=name).set(value)
    write_to_textfile(str(path), registry)


def _write_events(figures: Mapping[str, float], directory: Path, step: int) -> None:
    """Write each figure at the step that is the version's number, so that versions make a curve."""
    if find_spec("tensorboardX") is None:
        return
    from tensorboardX import SummaryWriter

    for old in directory.glob("events.out.tfevents.*"):
        old.unlink()
    writer = SummaryWriter(str(directory))
    for name, value in figures.items():
        writer.add_scalar(f"evaluation/{name}", value, step)
    writer.close()
