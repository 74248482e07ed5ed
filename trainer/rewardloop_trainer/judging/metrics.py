"""What `rewardloop judge` and `rewardloop critique` report to Prometheus, prefixed ``rewardloop_judge_``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from rewardloop.process.process_metrics import report_process
from rewardloop_trainer.judging.asked_chat import CallOutcome
from rewardloop_trainer.judging.chat_judge import Unjudged
from rewardloop_trainer.judging.pairs.journal import PAIR_STATES, PairState, PickedAs
from rewardloop_trainer.judging.replies import Budget, Spent

CALL_OUTCOMES: tuple[str, ...] = get_args(CallOutcome)
UNJUDGED: tuple[str, ...] = get_args(Unjudged)
PICKED: tuple[str, ...] = get_args(PickedAs)
FIGURES = ("agreement", "consistency", "first_shown", "longer", "overconfidence", "calibration_error", "weight")
BOUNDS = ("value", "lower", "upper")
UNITS = ("calls", "tokens")
STEP_OUTCOMES = ("unchanged", "changed", "unreadable")

_OPEN: tuple[str, ...] | None = None

# The values that each label may have, by the metric's name; None stands for a label that files choose.
LABEL_VALUES: Mapping[str, Mapping[str, tuple[str, ...] | None]] = {
    "rewardloop_judge_calls_total": {"outcome": CALL_OUTCOMES},
    "rewardloop_judge_spent": {"unit": UNITS},
    "rewardloop_judge_budget": {"unit": UNITS},
    "rewardloop_judge_pairs": {"state": PAIR_STATES, "picked": PICKED},
    "rewardloop_judge_unjudged_total": {"reason": UNJUDGED},
    "rewardloop_judge_quality": {"figure": FIGURES, "bound": BOUNDS},
    "rewardloop_judge_signals_total": {"outcome": ("recorded", "refused")},
    "rewardloop_judge_critiques_total": {"principle": _OPEN, "outcome": STEP_OUTCOMES},
}


class JudgeMetrics:
    """One process's instruments, in a registry of their own. A process judges by one model."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        report_process(self.registry)
        self.calls = self._counter("calls", "Calls of the model by how they ended; cached ones cost nothing.")
        self.spent = self._gauge("spent", "Calls and tokens of the day, in UTC, that are spent or reserved.")
        self.budget = self._gauge("budget", "Most calls and tokens of a day; +Inf: no bound.")
        self.budget_spent = self._gauge("budget_spent", "1 while the budget of the day stops the work.")
        self.pairs = self._gauge("pairs", "Pairs by their state, and by why they were picked.")
        self.unjudged = self._counter("unjudged", "Pairs that have no opinion, by reason.")
        self.quality = self._gauge("quality", "Figures of the judge on the pairs that people judged too.")
        self.shared = self._gauge("shared_pairs", "Judged pairs that people judged too.")
        self.muted = self._gauge(
            "muted", "1 while the judge's weight is shown to be below the floor: only shared pairs are judged."
        )
        self.away = self._gauge("away", "1 while the model gives no usable replies.")
        self.signals = self._counter("signals", "Signals of the judge by what the server said.")
        self.critiques = self._counter("critiques", "Answers that were criticised, by principle and what came of it.")
        for figure in FIGURES:
            for bound in BOUNDS:
                self.quality.labels(figure=figure, bound=bound).set(math.nan)

    def show_budget(self, budget: Budget, spent: Spent) -> None:
        """Show what is spent of the budget."""
        for unit, used, most in (("calls", spent.calls, budget.calls), ("tokens", spent.tokens, budget.tokens)):
            self.spent.labels(unit=unit).set(used)
            self.budget.labels(unit=unit).set(math.inf if most is None else most)

    def show_pairs(self, counts: Mapping[tuple[PairState, PickedAs], int]) -> None:
        """Show how many pairs are in each state, by why they were picked."""
        for state in PAIR_STATES:
            for picked in get_args(PickedAs):
                self.pairs.labels(state=state, picked=picked).set(counts.get((state, picked), 0))

    def show_figure(self, figure: str, value: float, lower: float = math.nan, upper: float = math.nan) -> None:
        """Show a figure with its interval."""
        for bound, each in zip(BOUNDS, (value, lower, upper), strict=True):
            self.quality.labels(figure=figure, bound=bound).set(each)

    def _counter(self, name: str, text: str) -> Counter:
        full = f"rewardloop_judge_{name}_total"
        made = Counter(full, text, tuple(LABEL_VALUES.get(full, {})), registry=self.registry)
        self._announce(made, full)
        return made

    def _gauge(self, name: str, text: str) -> Gauge:
        full = f"rewardloop_judge_{name}"
        made = Gauge(full, text, tuple(LABEL_VALUES.get(full, {})), registry=self.registry)
        self._announce(made, full)
        return made

    def _announce(self, made: Counter | Gauge, full: str) -> None:
        """Put every series on the page from the start, because an alert does not see the first step of a counter."""
        labels = LABEL_VALUES.get(full, {})
        combinations: list[tuple[str, ...]] = [()]
        for values in labels.values():
            if values is None:
                return
            combinations = [(*before, value) for before in combinations for value in values]
        for each in combinations:
            if each:
                made.labels(*each)
