"""What the trainer reports to Prometheus, prefixed ``rewardloop_trainer_``; `reward_hacking` is the product's alarm."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rewardloop.process.process_metrics import report_process
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.vocabulary import PHASES, RULES, rule_of

_MODELS = ("reward", "policy")
_KINDS = ("choice", "ranking", "thumb", "rating", "edit", "tie")
_SOURCES = ("human", "llm_judge", "implicit")
_OUTCOMES = ("promoted", "refused", "failed", "skipped", "given_up")
_TRAIN_SECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)

_SIDES = ("candidate", "live")
# Of the gates' figures, those that dashboards ask for: shown as NaN until there has been a gate.
_REWARD_FIGURES = (
    "gate_accuracy_difference",
    "gate_accuracy_difference_lower",
    "gate_accuracy_difference_upper",
    "gate_parity",
    "gate_tolerance",
)
_POLICY_FIGURES = (
    "gate_win_rate",
    "gate_win_rate_lower",
    "gate_win_rate_upper",
    "gate_score_win_rate",
    "gate_kl",
    "gate_length_ratio",
    "gate_perplexity_ratio",
    "live_win_rate",
    "live_win_rate_lower",
    "live_win_rate_upper",
)

# Tags are the callers' own: each pair of key and value that has a series of its own costs memory in every Prometheus
# that reads the page, for as long as it keeps data.
_MOST_SLICES = 50
_MOST_SLICE_CHARS = 60
_OTHER_SLICE = "other"
_MOST_ANNOTATORS = 100_000


class TrainerMetrics:
    """One process's instruments, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        report_process(self.registry)
        self.leading = self._gauge("trainer_leading", "1 while this process is the one that learns.")
        self.redis_up = self._gauge("redis_up", "1 while Redis answers.")
        self.signals = self._counter("trainer_signals", "Signals archived.", "kind")
        self.sources = self._counter("trainer_source_signals", "Signals archived, by who gave them.", "source")
        self.slices = self._counter(
            "trainer_slice_signals",
            f"Signals archived, by tag as key=value: the first {_MOST_SLICES} seen, the rest under {_OTHER_SLICE}.",
            "slice",
        )
        self.annotators = self._gauge(
            "trainer_annotators",
            f"People who gave signals since this process started, up to {_MOST_ANNOTATORS}; unnamed ones not counted.",
        )
        self.busiest_annotator = self._gauge(
            "trainer_busiest_annotator_ratio", "Share of their signals that the one with the most gave."
        )
        self.dead_letters = self._counter("trainer_dead_letters", "Stream entries that could not be read.")
        self.duplicates = self._counter("trainer_duplicates", "Entries acknowledged because the ledger had them.")
        self.redis_errors = self._counter("trainer_redis_errors", "Times that Redis did not answer the consumer.")
        self.disk_errors = self._counter("trainer_disk_errors", "Times that the disk was full or failed.")
        self.ledger_rows = self._gauge("trainer_ledger_rows", "Rows in the ledger.")
        self.stream_pending = self._gauge("trainer_stream_pending", "Entries in the stream not yet archived.")
        self.new_signals = self._gauge(
            "trainer_new_signals", "Signals in the ledger that no finished round of the model has seen.", "model"
        )
        self.min_signals = self._gauge("trainer_min_signals", "New signals that start a round.", "model")
        self.rounds = self._counter(
            "trainer_rounds",
            "Rounds by how they ended: promoted, refused, failed, skipped, given_up.",
            "model",
            "outcome",
        )
        self.last_round = self._gauge(
            "trainer_last_round_time_seconds", "Unix time at which the model's last round ended; 0: none has.", "model"
        )
        self.train_seconds = self._histogram(
            "trainer_train_seconds", "A round from its start to its end, in this process.", _TRAIN_SECONDS, "model"
        )
        self.steps = self._counter("trainer_steps", "Optimizer steps.", "model")
        self.step_seconds = self._histogram("trainer_step_seconds", "Time of a step.", _STEP_SECONDS, "model")
        self.loss = self._gauge("trainer_loss", "Last training loss.", "model")
        self.gradient_norm = self._gauge(
            "trainer_gradient_norm", "Norm of the last step's gradients, before they were clipped.", "model"
        )
        self.nonfinite = self._counter(
            "trainer_nonfinite_gradients", "Rounds that failed because gradients were no numbers.", "model"
        )
        self.score = self._gauge("trainer_score", "Mean score of the policy's answers in the last step.")
        self.reward = self._gauge("trainer_reward", "Mean reward of those answers, shaped as learning sees it.")
        self.kl = self._gauge("trainer_kl", "Their KL to the live policy, in nats an answer.")
        self.heldout_accuracy = self._gauge(
            "trainer_heldout_accuracy", "Accuracy on held-out pairs at the last gate.", "model", "side"
        )
        self.refusals = self._counter("trainer_refusals", "Candidates refused, by the rules broken.", "model", "rule")
        self.reward_gate = self._gauge(
            "trainer_reward_gate", "Figures of the last reward gate, by their name in the manifest.", "figure"
        )
        self.policy_gate = self._gauge(
            "trainer_policy_gate",
            "Figures of the last policy gate and live test, by their name in the manifest.",
            "figure",
        )
        self.reward_hacking = self._gauge(
            "reward_hacking",
            "1 while no policy is published because scores rose and an independent witness's liking fell.",
        )
        self.phase = self._gauge("trainer_phase", "1 for the phase that the model's round is in.", "model", "phase")
        self._slices: set[str] = set()
        self._by_annotator: Tally[str] = Tally()
        self._announce()

    def in_phase(self, model: str, phase: str) -> None:
        """Report that a model's round is in ``phase`` and no other."""
        for name in PHASES:
            self.phase.labels(model=model, phase=name).set(name == phase)

    def stepped(self, model: str, loss: float, gradient_norm: float, seconds: float) -> None:
        """An optimizer step was taken. A figure that is not known is NaN."""
        self.steps.labels(model=model).inc()
        self.loss.labels(model=model).set(loss)
        if not math.isnan(gradient_norm):
            self.gradient_norm.labels(model=model).set(gradient_norm)
        if not math.isnan(seconds):
            self.step_seconds.labels(model=model).observe(seconds)

    def archived(self, events: Iterable[feedback_pb2.FeedbackEvent]) -> None:
        """These signals are in the ledger now."""
        for event in events:
            self.signals.labels(kind=str(event.WhichOneof("signal"))).inc()
            source = feedback_pb2.Source.Name(event.source or feedback_pb2.SOURCE_HUMAN)
            self.sources.labels(source=source.removeprefix("SOURCE_").lower()).inc()
            for key, value in event.tags.items():
                self.slices.labels(slice=self._slice(f"{key}={value}")).inc()
            annotator = event.annotator_id
            if annotator and (annotator in self._by_annotator or len(self._by_annotator) < _MOST_ANNOTATORS):
                self._by_annotator[annotator] += 1
        self.annotators.set(len(self._by_annotator))
        if self._by_annotator:
            self.busiest_annotator.set(max(self._by_annotator.values()) / self._by_annotator.total())

    def refused(self, model: str, reasons: Iterable[object]) -> None:
        for rule in {rule_of(reason) for reason in reasons}:
            self.refusals.labels(model=model, rule=rule).inc()

    def show_reward_gate(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.reward_gate.labels(figure=name).set(value)

    def _slice(self, name: str) -> str:
        name = name[:_MOST_SLICE_CHARS]
        if name not in self._slices:
            if len(self._slices) >= _MOST_SLICES:
                return _OTHER_SLICE
            self._slices.add(name)
        return name

    def _announce(self) -> None:
        """Show what has not happened yet as 0: of a counter whose first value is 1 no alert sees the increase."""
        self.redis_up.set(math.nan)  # until the consumer has asked
        for kind in _KINDS:
            self.signals.labels(kind=kind)
        for source in _SOURCES:
            self.sources.labels(source=source)
        self.slices.labels(slice=_OTHER_SLICE)
        for side in _SIDES:
            self.heldout_accuracy.labels(model="reward", side=side).set(math.nan)
        self.show_reward_gate(dict.fromkeys(_REWARD_FIGURES, math.nan))
        for figure in _POLICY_FIGURES:
            self.policy_gate.labels(figure=figure).set(math.nan)
        for model in _MODELS:
            for by_model in (self.steps, self.nonfinite, self.train_seconds, self.step_seconds, self.last_round):
                by_model.labels(model=model)
            for by_model in (self.loss, self.gradient_norm, self.new_signals, self.min_signals):
                by_model.labels(model=model)
            for outcome in _OUTCOMES:
                self.rounds.labels(model=model, outcome=outcome)
            for rule in RULES:
                self.refusals.labels(model=model, rule=rule)
            self.in_phase(model, "idle")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rewardloop_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"rewardloop_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"rewardloop_{name}", text, labels, buckets=buckets, registry=self.registry)
