"""Every line that a process writes with ``--log-format json`` is one JSON object, whoever wrote it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

_SAYS = """
import logging, sys, threading, warnings
import structlog
from rewardloop.process.log import configure_logging

configure_logging("info", "json", {has_traces})
log = structlog.get_logger()
log.info("two\\nlines", text="naïve", size=3, path=__import__("pathlib").Path("/tmp"))
log.debug("not at this level")
try:
    raise ValueError("broken")
except ValueError:
    log.exception("failed")
logging.getLogger("library").warning("of %s", "a library")
logging.getLogger("library").info("too quiet")
warnings.warn("deprecated")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start(); thread.join()
{more}
raise KeyError("at the end")
"""

_IN_A_SPAN = """
from opentelemetry.sdk.trace import TracerProvider
with TracerProvider().get_tracer("t").start_as_current_span("s") as span:
    log.info("inside", expected=format(span.get_span_context().trace_id, "032x"))
"""


def _lines(more: str = "", has_traces: bool = False) -> list[dict[str, Any]]:
    code = _SAYS.format(more=more, has_traces=has_traces)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_each_line_is_one_object_whoever_wrote_it() -> None:
    lines = _lines()
    said = [(line["level"], line["event"].splitlines()[0]) for line in lines]
    assert said[:3] == [("info", "two"), ("error", "failed"), ("warning", "of a library")]
    assert (lines[0]["text"], lines[0]["size"]) == ("naïve", 3)
    assert "ValueError: broken" in lines[1]["exception"]
    assert "deprecated" in lines[3]["event"]
    assert (lines[4]["event"], lines[4]["thread"]) == ("uncaught exception", "worker")
    assert "ZeroDivisionError" in lines[4]["exception"]
    assert lines[5]["level"] == "critical"
    assert "KeyError: 'at the end'" in lines[5]["exception"]
    assert len(lines) == 6


# The server is a socket that answers with the frames SETTINGS and GOAWAY, the latter with an error (RFC 9113, 6.8).
_GOES_AWAY = """
import os, socket, sys, threading
from rewardloop.process.log import configure_logging

if sys.argv[1] == "configured":
    configure_logging("info", "json")
import grpc

def end():
    connection, _ = listening.accept()
    connection.recv(1000)
    connection.sendall(bytes.fromhex("000000" "04" "00" "00000000" "000008" "07" "00" "00000000" "00000000" "00000002"))
    connection.recv(1000)
    connection.recv(1000)

listening = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=end, daemon=True).start()
channel = grpc.insecure_channel("127.0.0.1:%d" % listening.getsockname()[1])
call = channel.unary_unary("/x.Y/Z").future(b"", timeout=3)
call.exception()
os._exit(0)  # else the channel goes on connecting
"""


@pytest.mark.parametrize("is_configured", [False, True])
def test_the_core_of_grpc_writes_no_line_when_a_server_ends(is_configured: bool) -> None:
    command = [sys.executable, "-c", _GOES_AWAY, "configured" if is_configured else "plain"]
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("Got goaway" in done.stderr) is not is_configured
    assert done.stderr == "" or not is_configured


def test_timestamps_are_iso_8601_in_utc() -> None:
    for line in _lines():
        assert line["timestamp"].endswith("Z")
        age = datetime.now(UTC) - datetime.fromisoformat(line["timestamp"])
        assert abs(age) < timedelta(minutes=5)


def test_an_event_within_a_trace_names_it() -> None:
    lines = _lines(_IN_A_SPAN, has_traces=True)
    (inside,) = [line for line in lines if line["event"] == "inside"]
    assert inside["trace_id"] == inside["expected"]
    assert len(inside["span_id"]) == 16
    assert all("trace_id" not in line for line in lines if line is not inside)
