"""What the door measures, on the registry of its process. No label holds a secret or what a caller chose freely."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge


class DoorMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.certificate_expiry = Gauge(
            "rewardloop_certificate_expiry_time_seconds",
            "When the server's certificate in use expires, as Unix time; NaN without TLS.",
            registry=registry,
        )
        self.certificate_expiry.set(math.nan)
        self.reloads_total = Counter(
            "rewardloop_door_reloads_total",
            "Changed files that were read again (certificate, callers), by outcome (taken, refused).",
            ("file", "outcome"),
            registry=registry,
        )
        self.quota_refusals_total = Counter(
            "rewardloop_quota_refusals_total",
            "Requests refused for a quota (requests, tokens, bytes, concurrent), by caller.",
            ("caller", "quota"),
            registry=registry,
        )
        self.audit_lines_total = Counter(
            "rewardloop_audit_lines_total",
            "Lines for the audit log, by outcome (written, failed, suppressed).",
            ("outcome",),
            registry=registry,
        )
