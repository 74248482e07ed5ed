"""What the trainer reports to Prometheus, prefixed ``rewardloop_trainer_``.

`redis_up` and `reward_hacking`, the product's alarm, have the prefix ``rewardloop_`` alone.
"""

# ruff: noqa: RUF009 - what the functions called in the class body return is a dataclass field with a factory

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rewardloop.formats.signals import person_of
from rewardloop.formats.vocabulary import SIGNAL_KINDS, SOURCES
from rewardloop.process.process_metrics import report_process
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.vocabulary import (
    BOUNDS,
    CHECK_FIGURES,
    DETECTORS,
    JUDGE_FIGURES,
    LIVE_TEST_FIGURES,
    MODELS,
    PERCENTILES,
    PHASES,
    POLICY_GATE_FIGURES,
    REWARD_GATE_FIGURES,
    ROUND_OUTCOMES,
    RULES,
    SAMPLER_FIGURES,
    SIDES,
    ModelName,
    Phase,
    RoundOutcome,
    rule_of,
)

_TRAIN_SECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)

# Tags are the callers' own: each pair of key and value that has a series of its own costs memory in every Prometheus
# that reads the page, for as long as it keeps data.
_MOST_SLICES = 50
_MOST_SLICE_CHARS = 60
_OTHER_SLICE = "other"
_MOST_ANNOTATORS = 100_000
_MOST_REASONS = 20
_MOST_REASON_CHARS = 120

T = TypeVar("T")
# The values of a label; None for one that callers choose.
_Values: TypeAlias = tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Declared:
    """A metric: its name, its labels, and what an untouched gauge shows."""

    name: str
    labels: Mapping[str, _Values]
    starts_at: float | None = None


_DECLARED = "declared"


def _instrument(make: Callable[..., T], declared: _Declared, text: str, **options: Any) -> T:
    return field(
        default_factory=lambda: make(declared.name, text, tuple(declared.labels), registry=None, **options),
        metadata={_DECLARED: declared},
    )


def _counter(name: str, text: str, **labels: _Values) -> Counter:
    return _instrument(Counter, _Declared(f"rewardloop_{name}_total", labels), text)


def _gauge(name: str, text: str, *, starts_at: float | None = None, **labels: _Values) -> Gauge:
    return _instrument(Gauge, _Declared(f"rewardloop_{name}", labels, starts_at), text)


def _histogram(name: str, text: str, buckets: tuple[float, ...], **labels: _Values) -> Histogram:
    return _instrument(Histogram, _Declared(f"rewardloop_{name}", labels), text, buckets=buckets)


@dataclass(frozen=True, slots=True)
class TrainerMetrics:
    """One process's instruments, in a registry of their own.

    Every series whose labels have known values is on the page from the start, as 0 or, where ``starts_at`` says so, as
    NaN: of a counter whose first value is 1, no alert sees the increase.
    """

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    leading: Gauge = _gauge("trainer_leading", "1 while this process is the one that learns.")
    redis_up: Gauge = _gauge("redis_up", "1 while Redis answers.", starts_at=math.nan)  # until the consumer has asked

    signals: Counter = _counter("trainer_signals", "Signals archived.", kind=SIGNAL_KINDS)
    sources: Counter = _counter("trainer_source_signals", "Signals archived, by who gave them.", source=SOURCES)
    slices: Counter = _counter(
        "trainer_slice_signals",
        f"Signals archived, by tag as key=value: the first {_MOST_SLICES} seen, the rest under {_OTHER_SLICE}.",
        slice=None,
    )
    annotators: Gauge = _gauge(
        "trainer_annotators",
        f"People who gave signals since this process started, up to {_MOST_ANNOTATORS}; unnamed ones not counted.",
    )
    busiest_annotator: Gauge = _gauge(
        "trainer_busiest_annotator_ratio", "Share of those people's signals that the busiest of them gave."
    )
    dead_letters: Counter = _counter("trainer_dead_letters", "Stream entries that could not be read.")
    dropped_letters: Counter = _counter(
        "trainer_dead_letters_dropped", "Oldest dead letters that were dropped beyond the bounds of their stream."
    )
    duplicates: Counter = _counter("trainer_duplicates", "Entries acknowledged because the ledger had them.")
    redis_errors: Counter = _counter("trainer_redis_errors", "Times that Redis did not answer the consumer.")
    disk_errors: Counter = _counter("trainer_disk_errors", "Times that the disk was full or failed.")
    flagged_people: Gauge = _gauge(
        "trainer_flagged_people",
        "People whom a detector has flagged among the signals that are kept; `rewardloop audit` lists them.",
        detector=DETECTORS,
    )
    bursts: Gauge = _gauge(
        "trainer_signal_bursts", "Times of ten minutes with far more signals than a caller usually sends."
    )
    hands: Gauge = _gauge("trainer_shared_hands", "Groups of ids that are taken for one hand.")
    muted: Gauge = _gauge("trainer_muted_ratio", "Share of people's signals that weigh nothing in training.")
    agreement: Gauge = _gauge(
        "trainer_agreement_alpha",
        "Krippendorff's alpha among people's comparisons, with the ends of its 95% interval.",
        starts_at=math.nan,
        figure=BOUNDS,
    )
    consistency: Gauge = _gauge(
        "trainer_self_consistency_ratio",
        "Share of people who were asked the same again that said the same.",
        starts_at=math.nan,
    )
    reliability: Gauge = _gauge(
        "trainer_person_accuracy_ratio",
        "How often people are right, as estimated: the person below whom so many percent of the people are.",
        starts_at=math.nan,
        percent=PERCENTILES,
    )
    first_wins: Gauge = _gauge(
        "trainer_first_wins_ratio",
        "Share of the choices with a known display order that the response seen first won.",
        starts_at=math.nan,
    )
    longer_wins: Gauge = _gauge(
        "trainer_longer_wins_ratio", "Share of the choices that the longer response won.", starts_at=math.nan
    )
    ledger_rows: Gauge = _gauge("trainer_ledger_rows", "Rows in the ledger.")
    stream_pending: Gauge = _gauge("trainer_stream_pending", "Entries in the stream not yet archived.")

    new_signals: Gauge = _gauge(
        "trainer_new_signals", "Signals in the ledger that no finished round of the model has seen.", model=MODELS
    )
    min_signals: Gauge = _gauge("trainer_min_signals", "New signals that start a round.", model=MODELS)
    unread_signals: Gauge = _gauge(
        "trainer_unread_signals",
        "New signals that no round of the model learns from, because its text layout refuses the conversation: by "
        f"reason, the first {_MOST_REASONS} seen, the rest under {_OTHER_SLICE}.",
        model=MODELS,
        reason=None,
    )
    rounds: Counter = _counter(
        "trainer_rounds",
        f"Rounds by how they ended: {', '.join(ROUND_OUTCOMES)}.",
        model=MODELS,
        outcome=ROUND_OUTCOMES,
    )
    last_round: Gauge = _gauge(
        "trainer_last_round_time_seconds", "Unix time at which the model's last round ended; 0: none has.", model=MODELS
    )
    train_seconds: Histogram = _histogram(
        "trainer_train_seconds", "A round from its start to its end, in this process.", _TRAIN_SECONDS, model=MODELS
    )
    phase: Gauge = _gauge("trainer_phase", "1 for the phase that the model's round is in.", model=MODELS, phase=PHASES)

    steps: Counter = _counter("trainer_steps", "Optimizer steps.", model=MODELS)
    step_seconds: Histogram = _histogram("trainer_step_seconds", "Time of a step.", _STEP_SECONDS, model=MODELS)
    loss: Gauge = _gauge("trainer_loss", "Last training loss.", model=MODELS)
    gradient_norm: Gauge = _gauge(
        "trainer_gradient_norm", "Norm of the last step's gradients, before they were clipped.", model=MODELS
    )
    nonfinite: Counter = _counter(
        "trainer_nonfinite_gradients", "Rounds that failed because gradients were no numbers.", model=MODELS
    )
    score: Gauge = _gauge("trainer_score", "Mean score of the policy's answers in the last step.")
    reward: Gauge = _gauge("trainer_reward", "Mean reward of those answers, shaped as learning sees it.")
    kl: Gauge = _gauge("trainer_kl", "Mean KL of those answers to the anchor policy, in nats an answer.")
    max_kl: Gauge = _gauge(
        "trainer_max_kl", "Most that this KL may be in the round, in nats an answer.", starts_at=math.nan
    )
    steps_taken_back: Counter = _counter(
        "trainer_steps_taken_back", "Rounds of a policy that ended early: a step went above that, and was taken back."
    )
    sampler: Gauge = _gauge(
        "trainer_sampler_difference",
        "Differences between the sampler's and the learner's log-probabilities in the last step, in nats a token.",
        starts_at=math.nan,
        figure=SAMPLER_FIGURES,
    )

    source_weight: Gauge = _gauge(
        "trainer_source_weight",
        "Weight of a signal of this source beside a person's, as the last reward round measured it on shared pairs.",
        starts_at=math.nan,
        source=tuple(source for source in SOURCES if source != "human"),
    )
    muted_sources: Gauge = _gauge(
        "trainer_muted_sources",
        "Sources and judges whose signals the last reward round left out, because they agree too little with people.",
    )

    heldout_accuracy: Gauge = _gauge(
        "trainer_heldout_accuracy",
        "Accuracy on held-out pairs at the last gate.",
        starts_at=math.nan,
        model=("reward",),
        side=SIDES,
    )
    refusals: Counter = _counter(
        "trainer_refusals", "Candidates refused, by the rules broken.", model=MODELS, rule=RULES
    )
    reward_gate: Gauge = _gauge(
        "trainer_reward_gate",
        "Figures of the last reward gate, by their name in the manifest.",
        starts_at=math.nan,
        figure=(*REWARD_GATE_FIGURES, *CHECK_FIGURES),
    )
    policy_gate: Gauge = _gauge(
        "trainer_policy_gate",
        "Figures of the last policy gate and live test, by their name in the manifest.",
        starts_at=math.nan,
        figure=(*POLICY_GATE_FIGURES, *JUDGE_FIGURES, *LIVE_TEST_FIGURES, *CHECK_FIGURES),
    )
    reward_hacking: Gauge = _gauge(
        "reward_hacking",
        "1 while no policy is published because scores rose while an independent witness's preference fell.",
    )
    promotion_held: Gauge = _gauge(
        "trainer_promotion_held",
        "1 while a person's rollback holds the promotions of a model, so that its rounds wait.",
        model=MODELS,
    )

    # Reward models beside "reward", whose series are shown as those of `MODELS`: no other model has any.
    further_models: tuple[ModelName, ...] = ()

    _reasons: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False)
    _slices: set[str] = field(default_factory=set, init=False, repr=False)
    _by_annotator: Tally[str] = field(default_factory=Tally, init=False, repr=False)

    def __post_init__(self) -> None:
        report_process(self.registry)
        for attribute, declared in _declared().items():
            instrument = getattr(self, attribute)
            self.registry.register(instrument)
            closed = [values for values in declared.labels.values() if values is not None]
            if len(closed) < len(declared.labels):
                continue
            of_models = [(*values, *self.further_models) if "reward" in values else values for values in closed]
            for values in product(*of_models):
                series = instrument.labels(*values) if values else instrument
                if declared.starts_at is not None:
                    series.set(declared.starts_at)
        self.slices.labels(slice=_OTHER_SLICE)
        for model in (*MODELS, *self.further_models):
            self.in_phase(model, "idle")
            self.unread_signals.labels(model=model, reason=_OTHER_SLICE)

    def in_phase(self, model: ModelName, phase: Phase) -> None:
        """Report that a model's round is in ``phase`` and no other."""
        for name in PHASES:
            self.phase.labels(model=model, phase=name).set(name == phase)

    def count_round(self, model: ModelName, outcome: RoundOutcome) -> None:
        """Count a round that ended, or an attempt at one that failed."""
        self.rounds.labels(model=model, outcome=outcome).inc()

    def stepped(self, model: ModelName, loss: float, gradient_norm: float, seconds: float) -> None:
        """Report an optimizer step. A figure that is not known is NaN."""
        self.steps.labels(model=model).inc()
        self.loss.labels(model=model).set(loss)
        if not math.isnan(gradient_norm):
            self.gradient_norm.labels(model=model).set(gradient_norm)
        if not math.isnan(seconds):
            self.step_seconds.labels(model=model).observe(seconds)

    def archived(self, events: Iterable[feedback_pb2.FeedbackEvent]) -> None:
        """Count signals that the ledger has taken."""
        for event in events:
            self.signals.labels(kind=str(event.WhichOneof("signal"))).inc()
            source = feedback_pb2.Source.Name(event.source or feedback_pb2.SOURCE_HUMAN)
            self.sources.labels(source=source.removeprefix("SOURCE_").lower()).inc()
            for key, value in event.tags.items():
                self.slices.labels(slice=self._slice(f"{key}={value}")).inc()
            annotator = person_of(event)
            if annotator and (annotator in self._by_annotator or len(self._by_annotator) < _MOST_ANNOTATORS):
                self._by_annotator[annotator] += 1
        self.annotators.set(len(self._by_annotator))
        if self._by_annotator:
            self.busiest_annotator.set(max(self._by_annotator.values()) / self._by_annotator.total())

    def show_unread(self, model: ModelName, reasons: Mapping[str, int]) -> None:
        """Show how many new signals the model's text layout refuses, by reason; reasons of earlier calls become 0."""
        counts: Tally[str] = Tally()
        for reason, count in reasons.items():
            shown = reason[:_MOST_REASON_CHARS]
            if (model, shown) not in self._reasons and sum(m == model for m, _ in self._reasons) >= _MOST_REASONS:
                shown = _OTHER_SLICE
            self._reasons.add((model, shown))
            counts[shown] += count
        for of, reason in self._reasons:
            if of == model:
                self.unread_signals.labels(model=model, reason=reason).set(counts[reason])

    def refused(self, model: ModelName, reasons: Iterable[object]) -> None:
        """Count each rule that a refused candidate broke, once."""
        for rule in {rule_of(reason) for reason in reasons}:
            self.refusals.labels(model=model, rule=rule).inc()

    def show_reward_gate(self, model: ModelName, figures: Mapping[str, float]) -> None:
        """Show the figures of a reward gate. Of a model other than "reward" it is the held-out accuracy alone."""
        if model == "reward":
            for name, value in figures.items():
                self.reward_gate.labels(figure=name).set(value)
        for side in SIDES:
            if (accuracy := figures.get(f"gate_{side}_accuracy")) is not None:
                self.heldout_accuracy.labels(model=model, side=side).set(accuracy)

    def show_sources(self, weights: Mapping[str, float], muted: int) -> None:
        """Show what the signals of measured sources are worth, and how many sources and judges are muted."""
        self.muted_sources.set(muted)
        for source, weight in weights.items():
            if source in SOURCES:
                self.source_weight.labels(source=source).set(weight)

    def show_step(self, figures: Mapping[str, float]) -> None:
        """Show what a step of a policy measured of its answers, if it sampled: rewards, KL, sampler and learner."""
        gauges = {"score": self.score, "reward": self.reward, "kl": self.kl, "max_kl": self.max_kl}
        for name, gauge in gauges.items():
            if name in figures:
                gauge.set(figures[name])
        for name in SAMPLER_FIGURES:
            if name in figures:
                self.sampler.labels(figure=name).set(figures[name])

    def show_policy_gate(self, figures: Mapping[str, float]) -> None:
        """Show the figures of a policy gate or of a live test."""
        for name, value in figures.items():
            self.policy_gate.labels(figure=name).set(value)

    def _slice(self, name: str) -> str:
        name = name[:_MOST_SLICE_CHARS]
        if name not in self._slices:
            if len(self._slices) >= _MOST_SLICES:
                return _OTHER_SLICE
            self._slices.add(name)
        return name


def _declared() -> dict[str, _Declared]:
    """By the names of the fields."""
    return {each.name: each.metadata[_DECLARED] for each in fields(TrainerMetrics) if _DECLARED in each.metadata}


# The values that each label may have, by the metric's name: a counter's ends in _total, a histogram's has no _bucket.
# None stands for a label whose values callers choose. Alerts and dashboards are held to it.
LABEL_VALUES: Mapping[str, Mapping[str, _Values]] = {each.name: each.labels for each in _declared().values()}
