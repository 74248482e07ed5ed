"""The metrics of labelling. No label holds the name of a project or of a labeller."""

# ruff: noqa: RUF009 - what the functions called in the class body return is a dataclass field with a factory

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

from rewardloop.formats.labelling.verdicts import VERDICTS
from rewardloop.v1 import labelling_pb2
from rewardloop_server.calls.vocabulary import ANSWER_OUTCOMES, AnswerOutcome
from rewardloop_server.observe.declare import counter, gauge, listed, register


@dataclass(frozen=True, slots=True)
class LabellingMetrics:
    """The collectors of labelling, registered on the given registry."""

    registry: InitVar[CollectorRegistry]
    answers_total: Counter = counter(
        "labelling_answers_total",
        f"Answers of labellers by kind ({listed(VERDICTS)}) and outcome ({listed(ANSWER_OUTCOMES)}).",
        kind=VERDICTS,
        outcome=ANSWER_OUTCOMES,
    )
    undone_total: Counter = counter("labelling_undone_total", "Answers that were taken back.")
    open_tasks: Gauge = gauge(
        "labelling_open_tasks", "Tasks of all projects that somebody may get now; NaN while Redis is away."
    )

    def __post_init__(self, registry: CollectorRegistry) -> None:
        register(self, registry)
        self.open_tasks.set(math.nan)
        for kind in VERDICTS:
            for outcome in ANSWER_OUTCOMES:
                self.answers_total.labels(kind=kind, outcome=outcome)

    def answered(self, verdict: labelling_pb2.Verdict, outcome: AnswerOutcome) -> None:
        """Count an answer."""
        self.answers_total.labels(kind=verdict.WhichOneof("verdict"), outcome=outcome).inc()
