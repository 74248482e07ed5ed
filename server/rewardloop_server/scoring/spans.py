"""The stages of a scored group as spans of its RPC. Imported only where tracing is on."""

from __future__ import annotations

import time

from opentelemetry import trace

from rewardloop.formats.store import Manifest
from rewardloop.process.grpc_tracing import tracer
from rewardloop_server.scoring.lane import Scored


def trace_stages(manifest: Manifest, lane: str, rows: int, tokenize_s: float, total_s: float, scored: Scored) -> None:
    """Made when all is known: tokenize, queue and run, one after another, ``total_s`` before now."""
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
