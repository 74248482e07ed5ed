"""The metrics of the door. No label holds a secret, or a text that a caller chose freely."""

# ruff: noqa: RUF009 - what the functions called in the class body return is a dataclass field with a factory

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

from rewardloop_server.calls.vocabulary import AUDIT_OUTCOMES, QUOTA_NAMES, RELOAD_OUTCOMES, RELOADED_FILES
from rewardloop_server.observe.declare import ANY, counter, gauge, listed, register


@dataclass(frozen=True, slots=True)
class DoorMetrics:
    """The door's collectors, registered on the given registry."""

    registry: InitVar[CollectorRegistry]
    certificate_expiry: Gauge = gauge(
        "certificate_expiry_time_seconds",
        "When the server's certificate in use expires, as Unix time; NaN without TLS.",
    )
    reloads_total: Counter = counter(
        "door_reloads_total",
        f"Changed files that were read again ({listed(RELOADED_FILES)}), by outcome ({listed(RELOAD_OUTCOMES)}).",
        file=RELOADED_FILES,
        outcome=RELOAD_OUTCOMES,
    )
    quota_refusals_total: Counter = counter(
        "quota_refusals_total",
        f"Requests refused for a quota ({listed(QUOTA_NAMES)}), by caller.",
        caller=ANY,
        quota=QUOTA_NAMES,
    )
    audit_lines_total: Counter = counter(
        "audit_lines_total",
        f"Lines for the audit log, by outcome ({listed(AUDIT_OUTCOMES)}).",
        outcome=AUDIT_OUTCOMES,
    )

    def __post_init__(self, registry: CollectorRegistry) -> None:
        register(self, registry)
        self.certificate_expiry.set(math.nan)
        for outcome in AUDIT_OUTCOMES:
            self.audit_lines_total.labels(outcome=outcome)
        for file in RELOADED_FILES:
            for taken in RELOAD_OUTCOMES:
                self.reloads_total.labels(file=file, outcome=taken)
