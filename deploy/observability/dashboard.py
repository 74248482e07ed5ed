"""The Grafana dashboard, written here and kept as ``dashboard.json``.

``python deploy/observability/dashboard.py`` writes it; ``--check`` fails where the kept one is another.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from learning_rows import feedback, learning, processes
from panels import SOURCE
from serving_rows import models, overview, scoring

KEPT = Path(__file__).with_name("dashboard.json")


def variables() -> list[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    def of_label(name: str, label: str, metric: str) -> dashboard.QueryVariable:
        return (
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query(f"label_values({metric}, {name})")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )

    return [
        dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        of_label("instance", "Process", "rewardloop_build_info"),
        of_label("model", "Model", "rewardloop_resident_versions"),
    ]


ROWS = {
    "Now": overview,
    "Scoring": scoring,
    "Models and swaps": models,
    "Feedback and stream": feedback,
    "Learning": learning,
    "Processes": processes,
}


def build() -> str:
    board = (
        dashboard.Dashboard("rewardloop")
        .uid("rewardloop")
        .description("Scoring, feedback, learning and swaps. Alerts and what to do: deploy/observability/RUNBOOK.md.")
        .tags(["rewardloop"])
        .timezone("utc")
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .variables(variables())
    )
    for title, row in ROWS.items():
        board.with_row(dashboard.Row(title))
        for panel in row():
            board.with_panel(panel)
    return JSONEncoder(indent=2, sort_keys=True).encode(board.build()) + "\n"


def main() -> int:
    made = build()
    if "--check" not in sys.argv:
        KEPT.write_text(made)
        return 0
    if not KEPT.exists() or KEPT.read_text() != made:
        print(f"{KEPT} is not what dashboard.py makes: run 'make dashboard'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
