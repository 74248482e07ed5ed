"""Reads the signals, loads the model, audits both, and writes the report and the metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from rewardloop.formats.signals import aspect_of
from rewardloop.formats.signatures import trusted_keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2
from rewardloop_data.judgements import Labels
from rewardloop_data.recognise import recognise
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.annotators.crowd_file import CrowdFile
from rewardloop_trainer.archive.ledger import ledger_to_read, order
from rewardloop_trainer.assessment.loaded_model import LoadedReward, load_reward
from rewardloop_trainer.audit.audit import Audit, Margins, make_audit
from rewardloop_trainer.audit.coverage import traffic_of
from rewardloop_trainer.audit.judged import Unseen, judged_of
from rewardloop_trainer.audit.report import figures_of, findings, report_of
from rewardloop_trainer.commands.audit.settings import AuditSettings
from rewardloop_trainer.commands.progress import Stages
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.reports.page import JSON, PAGE, publish_report, write_report
from rewardloop_trainer.reports.parts import Cell
from rewardloop_trainer.reward.evaluate import Floats, pair_margins

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Found:
    """What the command prints: the findings, and the figures by name."""

    findings: Sequence[str]
    figures: dict[str, float]


def run_audit(settings: AuditSettings, stages: Stages) -> Found:
    """Audit, and write what was found.

    Raises:
        ValueError: If there is no signal, or a row of a file is none.
        StoreError, UnusableBase, NothingToTrain, UnreadableFile, OSError: If ledger, files or version cannot be read,
            or the report cannot be written.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    until_ms: int | None = None
    margins_of: Margins | None = None
    if settings.version:
        stages(f"loading {settings.model} {settings.version}")
        until_ms, margins_of = _model(settings, stages)
    stages("reading the signals")
    events = list(_events(settings))
    judged = judged_of(events, Unseen(until_ms, settings.heldout_share), settings.group_tag)
    if not judged:
        raise ValueError(f"{settings.data or settings.archive}: has no signal of {settings.model} to audit")
    traffic = None
    if settings.traffic is not None:
        lines = SourceFile.of(settings.traffic).lines()
        traffic = traffic_of((line.number, line.value()) for line in lines)
    stages(f"auditing {len(judged):,} signals")
    with CrowdFile(None, most=len(events)) as file:
        file.add(events)
        audit = make_audit(judged, file, margins_of, traffic, settings.probed)
    figures = figures_of(audit)
    facts: dict[str, Cell] = {
        "signals": str(settings.data or settings.archive),
        "signals of": settings.model,
        "model": f"{settings.model} {settings.version}" if settings.version else "none",
        "signals that the model has not learned from": sum(each.is_unseen for each in judged),
    }
    report = report_of(audit, facts)
    write_report(report, settings.out)
    if settings.publish:
        publish_report(ModelStore(settings.store).reports, "audit", report)
    if settings.metrics_file is not None:
        write_metrics(audit, settings.metrics_file)
    return Found(findings(audit), figures)


def show(found: Found, settings: AuditSettings) -> None:
    """Print what was found on standard output."""
    if settings.output == "json":
        print(json.dumps({"findings": list(found.findings), "figures": found.figures}, indent=2))
        return
    console = Console()
    for each in found.findings[:_SHOWN]:
        console.print(f"- {each}", markup=False)
    if not found.findings:
        console.print("Nothing stands out.")
    elif len(found.findings) > _SHOWN:
        console.print(f"and {len(found.findings) - _SHOWN} more")
    console.print(f"{settings.out / PAGE} and {JSON} beside it have all figures", markup=False)


def write_metrics(audit: Audit, path: Path) -> None:
    """Write gauges for an alert, in Prometheus' text format. A reader sees the file as it was or whole."""
    registry = CollectorRegistry()
    whole = Gauge("rewardloop_audit", "A figure of the last audit.", ["figure"], registry=registry)
    for name, value in figures_of(audit).items():
        whole.labels(figure=name).set(value)
    labels = ["slice", "figure"]
    sliced = Gauge("rewardloop_audit_slice", "A figure of the last audit, by slice.", labels, registry=registry)
    for each in audit.slices:
        known = {
            "signals": float(each.signals),
            "alpha": each.agreement.alpha,
            "first_leaning": each.first.leaning.value,
            "longer_leaning": each.longer.leaning.value,
        }
        if each.model is not None:
            known |= {"accuracy": each.model.accuracy.value, "calibration_error": each.model.calibration_error}
        for name, value in known.items():
            sliced.labels(slice=each.name, figure=name).set(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), registry)


def _events(settings: AuditSettings) -> Iterator[feedback_pb2.FeedbackEvent]:
    """Yield the signals of the model's aspect; of a file also those that name none."""
    if settings.data is None:
        ledger = ledger_to_read(settings.archive)
        last = ledger.last_stream_id
        assert last is not None
        after = ledger.newest_from(settings.newest, last)
        yield from (row.event for row in ledger.scan(after or None) if aspect_of(row.event) == settings.model)
        return
    source = SourceFile.of(settings.data)
    reading = recognise(source.shown, source.lines(), Choices())
    for line in source.lines():
        try:
            yield from (e for e in reading.events(line.value(), Labels()) if e.aspect in ("", settings.model))
        except RowError as error:
            raise ValueError(f"{settings.data}:{line.number}: {error}") from error


def _model(settings: AuditSettings, stages: Stages) -> tuple[int | None, Margins]:
    """Return until when the version has learned, in milliseconds since 1970, and what gives its margins."""
    store = ModelStore(settings.store, trusted=trusted_keys(settings.trusted_keys))
    manifest = store.manifest(settings.model, settings.version)
    until = order(manifest.data.last_stream_id)[0] if manifest.data and settings.data is None else None
    return until, partial(_margins, stages, load_reward(store, settings.version, settings.model), settings.token_budget)


def _margins(stages: Stages, model: LoadedReward, token_budget: int, pairs: Sequence[Pair]) -> Floats:
    stages(f"scoring {2 * len(pairs):,} responses")
    margins = np.full(len(pairs), np.nan)
    read = [i for i, is_read in enumerate(model.encoder.reads([pair.prompt for pair in pairs])) if is_read]
    margins[read] = pair_margins(model.model, model.encoder, [pairs[i] for i in read], model.length, token_budget)
    return margins
