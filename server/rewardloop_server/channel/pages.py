"""One page of metrics for several processes: each shows its own on a Unix socket, and one gathers them.

Every series of the gathered page has the label ``process``. They are not summed, because a sum would fall when a
process is started again, which Prometheus would take for a new start of the whole counter.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from rewardloop.process.process_metrics import report_process
from rewardloop_server.channel.front import Folder

_PATIENCE_S = 2.0
# Metrics that the engine's process alone measures, and metrics that each process measures of itself.
_OF_ENGINE = tuple(
    f"rewardloop_{name}"
    for name in (
        *("queue_", "batch_", "padding_ratio", "failed_runs", "stuck_runs", "version_stuck_runs", "engine_stuck"),
        *("run_seconds", "cost_model_seconds", "gpu_"),
    )
)
_OF_EACH = ("process_", "python_", "rewardloop_build", "rewardloop_event_loop_", "rewardloop_engine_stuck")
_PARENT = "supervisor"


def show(path: Path, registry: CollectorRegistry, *, is_engine: bool) -> None:
    """Show what the process measures to each connection of this socket, from a thread, while the process lives.

    Args:
        path: The socket.
        registry: All metrics of a process that does everything.
        is_engine: Whether this is the engine's process, or a front.
    """
    shown = _Shown(registry, is_engine)

    class Page(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(_PATIENCE_S)
            self.request.sendall(generate_latest(shown))

    path.unlink(missing_ok=True)
    server = _Server(str(path), Page)
    threading.Thread(target=server.serve_forever, name="page", daemon=True).start()


class _Shown(Collector):
    """The metrics of a registry that one kind of process measures. Of the others it would show a 0 that says nothing,
    such as that of versions in memory at the engine, for which an alert would call."""

    def __init__(self, registry: CollectorRegistry, is_engine: bool) -> None:
        self._registry = registry
        self._is_engine = is_engine

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            is_of_engine = family.name.startswith(_OF_ENGINE)
            if is_of_engine == self._is_engine or family.name.startswith(_OF_EACH):
                yield family


class _Server(socketserver.UnixStreamServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a reader that broke off."""


class Pages(Collector):
    """Gathers the pages of all processes of a folder, and that of the process itself, when it is read."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._own = CollectorRegistry()
        report_process(self._own)

    def describe(self) -> Iterable[Metric]:
        return ()  # it depends on the processes, and the registry need not know it

    def collect(self) -> Iterator[Metric]:
        """Yield every family once, with the series of all processes. One that does not answer is left out."""
        texts = {_PARENT: generate_latest(self._own).decode()}
        for process, path in self._folder.pages().items():
            if (text := _read(path)) is not None:
                texts[process] = text
        families: dict[str, Metric] = {}
        for process, text in texts.items():
            for found in _families(text):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.samples.append(sample._replace(labels={"process": process, **sample.labels}))
        yield from families.values()


def samples_of(folder: Folder, names: tuple[str, ...]) -> list[Sample]:
    """Return the samples of these names of all processes of a folder. One that does not answer is left out."""
    found: list[Sample] = []
    for path in folder.pages().values():
        lines = (_read(path) or "").splitlines()
        wanted = "\n".join(line for line in lines if line.startswith(names)) + "\n"
        found += (sample for family in _families(wanted) for sample in family.samples)
    return found


def _families(text: str) -> list[Metric]:
    """Read a page. One that broke off, because its process ended, is left out."""
    try:
        return list(text_string_to_metric_families(text))
    except ValueError:
        return []


def _read(path: Path) -> str | None:
    """Return the text of a process's page, or None if it does not answer."""
    parts = []
    try:
        with socket.socket(socket.AF_UNIX) as reader:
            reader.settimeout(_PATIENCE_S)
            reader.connect(str(path))
            while part := reader.recv(65_536):
                parts.append(part)
    except OSError:  # it has ended, or begins
        return None
    return b"".join(parts).decode()
