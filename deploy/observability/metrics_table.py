"""The table of all metrics in this folder's README.md, made from the registries of the processes.

``python deploy/observability/metrics_table.py`` writes it; ``--check`` fails where the kept one is another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from rewardloop.process.process_metrics import GpuCollector
from rewardloop_server.observe.door_metrics import DoorMetrics
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_trainer.metrics import TrainerMetrics

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- metrics: make observability -->\n", "<!-- end of metrics -->\n"
_FOREIGN = ("process_", "python_")


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def rows_of(registry: CollectorRegistry) -> Iterator[Row]:
    """Every metric of rewardloop's own, by the name that a query begins with."""
    labels: dict[str, tuple[str, ...]] = {}
    collectors: Any = registry._collector_to_names  # there is no public way to ask for label names
    for collector, names in collectors.items():
        labels |= dict.fromkeys(names, getattr(collector, "_labelnames", ()))
    for family in registry.collect():
        if not family.name.startswith(_FOREIGN):
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            info = ("python", "version") if family.type == "info" else ()
            yield Row(name, family.type, (*labels.get(family.name, ()), *info), family.documentation)
    for family in GpuCollector().describe():
        yield Row(family.name, family.type, ("gpu", "name"), family.documentation)


def table() -> str:
    serving = ServerMetrics().registry
    DoorMetrics(serving)
    server, trainer = ({row.name: row for row in rows_of(r)} for r in (serving, TrainerMetrics().registry))
    lines = ["| metric | type | labels | of | what it says |", "| --- | --- | --- | --- | --- |"]
    for row in sorted({**trainer, **server}.values(), key=lambda row: row.name):
        labels, where = ", ".join(row.labels), _where(row.name, server, trainer)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {where} | {row.text} |")
    return "\n".join(lines) + "\n"


def _where(name: str, server: Mapping[str, Row], trainer: Mapping[str, Row]) -> str:
    if name in server and name in trainer:
        return "all"
    return "serving" if name in server else "trainer"


def main() -> int:
    kept = README.read_text()
    before, _, rest = kept.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" not in sys.argv:
        README.write_text(made)
        return 0
    if kept != made:
        print(f"{README}: the table of metrics is not theirs: run 'make observability'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
