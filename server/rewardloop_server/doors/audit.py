"""The audit log: what admins did, and who tried in vain, as JSON lines.

An action has two lines with the same ``id``. The line ``began`` is on disk before the action starts; if it cannot be
written, the action is not carried out. The line ``ended`` has the outcome. The file is opened for each line, so it may
be moved away at any time, as logrotate does.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from rewardloop_server.calls.errors import AuditUnavailable
from rewardloop_server.doors.quotas import Bucket
from rewardloop_server.observe.door_metrics import DoorMetrics

log = structlog.get_logger()

# Anybody who reaches the port can cause refusals, so their rate must not decide how fast the log grows and syncs.
_REFUSALS_PER_S = 10.0
_REFUSALS_BURST_S = 10.0
_MAX_TEXT = 500
# Ids of people and of what they asked. The log is kept for years, and must not say who was erased.
_PERSONAL = {"annotator_id": "annotator", "generation_id": "generation"}


def _hidden(kind: str, text: str) -> str:
    return "hidden"


class AuditLog:
    """Appends lines to the file at ``path``. If it is None, actions are only logged.

    Attributes:
        hide: Returns what is written instead of an id of a person or a generation, given which of them it is.
    """

    def __init__(self, path: Path | None, metrics: DoorMetrics) -> None:
        self._path = path
        self._metrics = metrics
        self._lock = threading.Lock()
        self._refusals = Bucket(_REFUSALS_PER_S, _REFUSALS_BURST_S, time.monotonic())
        self._suppressed = 0
        self.hide: Callable[[str, str], str] = _hidden

    async def began(self, caller: str, peer: str, method: str, request: Message) -> str:
        """Record that an action begins, and return its id.

        Raises AuditUnavailable if the line cannot be written. Then the action must not be carried out.
        """
        action = secrets.token_hex(8)
        line = _line("began", action, caller, peer, method) | {"parameters": self._parameters(request)}
        try:
            await self._write(line)
        except OSError as error:
            raise AuditUnavailable("the audit log cannot be written") from error
        return action

    async def ended(self, action: str, caller: str, peer: str, method: str, outcome: str, reason: str) -> None:
        """Record an action's outcome. A line that cannot be written is only logged, because the action has happened."""
        line = _line("ended", action, caller, peer, method) | {"outcome": outcome, "reason": reason}
        await self._write_if_possible(line)

    async def refused(self, caller: str, peer: str, method: str, outcome: str, reason: str) -> None:
        """Record a refused attempt, at about ten lines a second at most. The next line counts those left out."""
        if self._refusals.wait_s(time.monotonic()) > 0:
            self._suppressed += 1
            self._metrics.audit_lines_total.labels(outcome="suppressed").inc()
            return
        self._refusals.take(1)
        line = _line("refused", secrets.token_hex(8), caller, peer, method) | {"outcome": outcome, "reason": reason}
        if self._suppressed:
            line["suppressed_before"], self._suppressed = self._suppressed, 0
        await self._write_if_possible(line)

    def _parameters(self, request: Message) -> dict[str, Any]:
        fields = MessageToDict(request, preserving_proto_field_name=True)
        for name, kind in _PERSONAL.items():
            if isinstance(text := fields.get(name), str):
                fields[name] = self.hide(kind, text)
        return {name: _parameter(value) for name, value in fields.items()}

    async def _write_if_possible(self, line: dict[str, Any]) -> None:
        try:
            await self._write(line)
        except OSError as error:
            log.error("audit line lost", error=str(error), **_fields(line))

    async def _write(self, line: dict[str, Any]) -> None:
        log.info("admin action", **_fields(line))
        if self._path is None:
            return
        try:
            await asyncio.to_thread(self._append, self._path, json.dumps(line).encode() + b"\n")
        except OSError:
            self._metrics.audit_lines_total.labels(outcome="failed").inc()
            raise
        self._metrics.audit_lines_total.labels(outcome="written").inc()

    def _append(self, path: Path, line: bytes) -> None:
        with self._lock:
            is_new = not path.exists()
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(file).st_size
                # A full disk or a crash may have left half a line. A line break keeps it apart from this one.
                torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
                data = b"\n" + line if torn else line
                if os.write(file, data) < len(data):
                    raise OSError("only part of the line could be written")
                os.fsync(file)
            finally:
                os.close(file)
            if is_new:
                _sync_directory(path.parent)


def _line(event: str, action: str, caller: str, peer: str, method: str) -> dict[str, Any]:
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"time": moment, "event": event, "id": action, "caller": caller, "peer": peer, "method": method}


def _fields(line: dict[str, Any]) -> dict[str, Any]:
    """Return the line's fields under names that structlog takes, for which ``event`` is the name of its own event."""
    return {"step" if key == "event" else key: value for key, value in line.items()}


def _parameter(value: Any) -> Any:
    """Return the start of a text, and of a list only its length: the tasks of labellers hold prompts."""
    if isinstance(value, list):
        return f"{len(value)} of them"
    return value[:_MAX_TEXT] if isinstance(value, str) else value


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
