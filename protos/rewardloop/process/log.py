"""Configures the log of a process."""

from __future__ import annotations

import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


def configure_logging(level: str, log_format: str, has_traces: bool = False) -> None:
    """Write each structlog event as a line on standard error.

    As JSON, the log of libraries, warnings and uncaught exceptions become such lines, too. The core of gRPC writes
    lines of its own form. If it is imported after this call, only its errors are left, unless GRPC_VERBOSITY says
    otherwise.

    Args:
        level: Name of the lowest level that is written, such as "info".
        log_format: "json", or "console" for people.
        has_traces: Add the ids of trace and span to events inside a trace.
    """
    # gRPC reads it when it is imported. Processes that this one starts get it, too.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([_name_the_trace] if has_traces else []),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*common, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # It writes a line at once, so that lines of several processes on one stream are not joined.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    if log_format == "json":
        _take_what_others_say([*common, structlog.stdlib.add_logger_name], renderer)


def _take_what_others_say(common: list[Processor], renderer: Processor) -> None:
    """Write the log of libraries, warnings, and exceptions that end a thread or the process, by the same renderer."""
    handler = logging.StreamHandler(sys.stderr)
    finish: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        renderer,
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=common, processors=finish))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        structlog.get_logger().critical("uncaught exception", exc_info=(kind, error, trace))

    def uncaught_in_thread(raised: threading.ExceptHookArgs) -> None:
        error = raised.exc_value or raised.exc_type()
        name = raised.thread.name if raised.thread else None
        exc_info = (raised.exc_type, error, raised.exc_traceback)
        structlog.get_logger().critical("uncaught exception", thread=name, exc_info=exc_info)

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread


def _name_the_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event
