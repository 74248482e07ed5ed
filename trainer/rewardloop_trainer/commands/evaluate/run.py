"""Runs an evaluation from its settings to the files that it writes."""

from __future__ import annotations

from datetime import UTC, datetime

import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from rewardloop.formats.mixing.names import POLICY
from rewardloop_trainer.assessment.checks import Check, check_figures, checks_section
from rewardloop_trainer.assessment.reward_models.report import Findings
from rewardloop_trainer.commands.evaluate.loaded import store_of
from rewardloop_trainer.commands.evaluate.outcome import record_figures, write_outcome
from rewardloop_trainer.commands.evaluate.policy_run import evaluate_policy
from rewardloop_trainer.commands.evaluate.reward_run import evaluate_reward
from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings
from rewardloop_trainer.commands.progress import Stages
from rewardloop_trainer.reports.page import publish_report
from rewardloop_trainer.reports.parts import Cell, Report
from rewardloop_trainer.rounds.publish import code_version


def evaluate(settings: EvaluateSettings, stages: Stages) -> int:
    """Measure the model, write the report and say what its checks decide.

    Returns:
        The exit status: 1 if a check refuses the model.

    Raises:
        ValueError: If there is nothing to measure, or on nothing.
        StoreError, UnusableBase, UnreadableFile, OSError: If a model or a file cannot be read.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    found = Findings()
    measure = evaluate_policy if settings.model == POLICY else evaluate_reward
    name, facts, checks = measure(settings, found, stages)
    if checks:
        found.sections.insert(0, checks_section(checks))
        found.figures |= check_figures(checks)
    report = Report(
        f"{settings.model}: {name}",
        _lead(checks),
        {**facts, "made": datetime.now(UTC).isoformat(timespec="minutes"), "rewardloop": code_version()},
        found.figures,
        found.sections,
    )
    report_id = publish_report(store_of(settings).reports, "evaluation", report) if settings.publish else ""
    if settings.record and settings.version:
        record_figures(settings, report, str(facts["compared with"]) if settings.against else "", report_id)
    page = write_outcome(report, settings.out, settings.model, settings.version or name)
    refused = [check for check in checks if not check.passed]
    for check in refused:
        print(f"refused: {check.reason}", flush=True)
    print(f"{page}: {_summary(found, facts)}", flush=True)
    return 1 if refused else 0


def _lead(checks: list[Check]) -> str:
    if not checks:
        return ""
    refused = sum(not check.passed for check in checks)
    return f"{refused} of {len(checks)} checks refuse it." if refused else f"All {len(checks)} checks passed."


def _summary(found: Findings, facts: dict[str, Cell]) -> str:
    shown = ("accuracy", "calibration_error", "win_rate", "length_controlled_win_rate", "safety_failures")
    said = [f"{name.replace('_', ' ')} {found.figures[name]:.3f}" for name in shown if name in found.figures]
    return ", ".join(said) or ", ".join(f"{name} {value}" for name, value in facts.items())
