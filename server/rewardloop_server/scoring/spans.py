"""Records the stages of a scored group as spans of its RPC. Imported only if tracing is on."""

from __future__ import annotations

import time

from opentelemetry import trace

from rewardloop.formats.store import Manifest
from rewardloop.process.grpc_tracing import tracer
from rewardloop_server.scoring.lane import Scored


def trace_stages(manifest: Manifest, lane: str, rows: int, tokenize_s: float, total_s: float, scored: Scored) -> None:
    """Record the spans of tokenize, queue and run after the group is scored.

    Args:
        manifest: The version that scored it.
        lane: The lane in which it waited.
        rows: How many responses it has.
        tokenize_s: Seconds of tokenizing.
        total_s: Seconds since it was validated.
        scored: The outcome of the batch.
    """
    began = time.time_ns() - int(total_s * 1e9)
    trace.get_current_span().add_event("validated", timestamp=began)
    attributes: dict[str, str | int] = {
        "rewardloop.lane": lane,
        "rewardloop.version": manifest.version,
        "rewardloop.rows": rows,
        "rewardloop.run_rows": scored.run_rows,
        "rewardloop.run_tokens": scored.run_tokens,
    }
    for name, seconds in (("tokenize", tokenize_s), ("queue", scored.queue_s), ("run", scored.run_s)):
        span = tracer().start_span(name, attributes=attributes, start_time=began)
        began += int(seconds * 1e9)
        span.end(began)
