"""Writes what was found: the report, TensorBoard scalars, metrics for a text collector, and figures in the store."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from rewardloop.formats.storing.evaluated import Evaluated, EvaluatedError
from rewardloop_trainer.assessment.measures import finite
from rewardloop_trainer.assessment.reward_models.report import OF_SLICE
from rewardloop_trainer.commands.evaluate.loaded import store_of
from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings
from rewardloop_trainer.reports.page import PAGE, write_report
from rewardloop_trainer.reports.parts import Report

METRICS = "metrics.prom"


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


def record_figures(settings: EvaluateSettings, report: Report, against: str, report_id: str) -> None:
    """Leave the figures of a version beside it in its store. A store that refuses them is said on standard error.

    Figures of slices are left out: their names hold tags of signals.

    Args:
        settings: They name the store and the version.
        report: What was found.
        against: What the version was compared with; "" for nothing.
        report_id: The report in the store; "" if it is in none.

    Raises:
        StoreError, UnusableKey: If the version cannot be read.
    """
    store = store_of(settings)
    digest = store.manifest(settings.model, settings.version).digest
    figures = {name: value for name, value in report.figures.items() if not name.startswith(OF_SLICE)}
    try:
        store.evaluated.keep(
            settings.model, settings.version, Evaluated(digest, time.time(), against, finite(figures), report_id)
        )
    except EvaluatedError as error:
        print(f"rewardloop evaluate: the figures are not in the store: {error}", file=sys.stderr, flush=True)


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
