"""Checks that can stand in a gate: each refuses by name, says why, and shows the cases.

A check of no harm is a test of non-inferiority: the candidate passes if it is shown not to lose more than a margin
against the version before it. One that loses the margin passes with a probability of at most alpha, and one about which
too little is known does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewardloop_trainer.clusters import ClusteredMean, Ints
from rewardloop_trainer.reports.parts import Cell, Measured, Paragraph, Report, Sample, Samples, Section, Table
from rewardloop_trainer.vocabulary import Reason, Rule

MOST_CASES = 50
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of a check.

    Attributes:
        rule: What kind of check it is.
        name: What was checked, such as a benchmark's subset.
        passed: Whether the candidate passes.
        text: What was found, as the reason of a refusal states it.
        found: The figure that decided, with the bounds of its 95% interval.
        room: How far the deciding bound is on the right side of the threshold; below 0 if it is on the wrong one.
        cases: Examples of what the candidate does worse.
    """

    rule: Rule
    name: str
    passed: bool
    text: str
    found: Measured
    room: float
    cases: tuple[Sample, ...] = field(default=(), repr=False)

    @property
    def reason(self) -> Reason:
        return Reason(self.rule, f"{self.rule} {self.name}: {self.text}")


def no_worse(
    rule: Rule,
    name: str,
    change: ClusteredMean,
    margin: float,
    alpha: float,
    cases: Sequence[Sample] = (),
    *,
    what: str = "accuracy",
) -> Check:
    """Check that a figure has fallen by less than ``margin`` against the version before.

    Args:
        rule: The kind of check.
        name: What is compared.
        change: The candidate's figure less the other version's, paired.
        margin: The fall that is accepted.
        alpha: The probability with which a fall of ``margin`` passes.
        cases: Where the candidate is worse.
        what: The figure.
    """
    lower = change.lower(alpha)
    found = Measured(change.mean, change.lower(0.025), change.upper(0.025))
    # Without any difference between the versions there is no fall, however small the margin is.
    passed = lower > -margin or (change.mean >= 0 and change.error == 0)
    text = f"{what} {change.mean:+.3f} against the live version, by its interval perhaps {lower:+.3f}"
    if not passed:
        text += f": not above {-margin:+.3f}"
    if math.isnan(change.mean):
        text = f"{what}: there is nothing to compare"
    return Check(rule, name, passed, text, found, lower + margin, tuple(cases[:MOST_CASES]))


def parts_to_judge(parts: Mapping[str, Ints], least: int) -> dict[str, Ints]:
    """Return the parts that have ``least`` members, and the others joined, if those have as many together."""
    judged = {name: places for name, places in parts.items() if len(places) >= least}
    small = [places for places in parts.values() if len(places) < least]
    if small and len(joined := np.unique(np.concatenate(small))) >= least:
        judged[OTHERS] = joined
    return judged


def too_few(rule: Rule, name: str, have: int, least: int) -> Check:
    """The check of something of which there is too little to decide."""
    text = f"needs {least - have} more questions to decide (have {have})"
    return Check(rule, name, False, text, Measured(math.nan, math.nan, math.nan), -math.inf)


def check_figures(checks: Sequence[Check]) -> dict[str, float]:
    """Return the figures of a manifest: for each rule that of the check with the least room."""
    figures: dict[str, float] = {}
    for check in sorted(checks, key=lambda check: check.room, reverse=True):
        if math.isfinite(check.found.value):
            figures[f"gate_check_{check.rule}"] = check.found.value
    return figures


def cases_of(checks: Sequence[Check]) -> list[Sample]:
    """Return the cases of the checks that refuse, those of each check together."""
    return [case for check in checks if not check.passed for case in check.cases]


def checks_section(checks: Sequence[Check]) -> Section:
    """Return the section of a report that says which checks passed, and shows the cases of those that did not."""
    refused = [check for check in checks if not check.passed]
    rows: list[Sequence[Cell]] = [
        (check.rule, check.name, "passed" if check.passed else "refused", check.found, check.text) for check in checks
    ]
    table = Table("checks", ("check", "of", "outcome", "figure", "found"), rows)
    parts: list[Paragraph | Table | Samples] = [table]
    parts.insert(0, _verdict(checks, refused))
    for number, check in enumerate(refused):
        parts.append(Paragraph(str(check.reason), "bad"))
        if check.cases:
            note = f"{len(check.cases)} cases in which the candidate is worse"
            parts.append(Samples(f"cases-{number}", check.cases, f"{check.rule} {check.name}", note))
    return Section("checks", "Checks", parts)


def checks_report(title: str, checks: Sequence[Check], facts: Mapping[str, Cell] | None = None) -> Report:
    """Return the report of a gate's checks."""
    refused = [check for check in checks if not check.passed]
    lead = f"{len(refused)} of {len(checks)} checks refuse the candidate." if refused else "All checks passed."
    return Report(title, lead, facts or {}, check_figures(checks), [checks_section(checks)])


def _verdict(checks: Sequence[Check], refused: Sequence[Check]) -> Paragraph:
    if not checks:
        return Paragraph("No check was asked for.", "note")
    if refused:
        return Paragraph(f"Refused by {', '.join(f'{check.rule} {check.name}' for check in refused)}.", "bad")
    return Paragraph(f"All {len(checks)} checks passed.", "good")
