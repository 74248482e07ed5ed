"""Makes deploy/observability/dashboard.json: the rows of `rows` on one Grafana dashboard."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from rewardloop_observability.panels import SOURCE, Panel
from rewardloop_observability.rows import feedback, judging, learning, models, overview, processes, scoring

# Title of each row, and what makes its panels.
ROWS: Mapping[str, Callable[[], list[Panel]]] = {
    "Now": overview.panels,
    "Scoring": scoring.panels,
    "Models and swaps": models.panels,
    "Feedback and stream": feedback.panels,
    "Learning": learning.panels,
    "Judges": judging.panels,
    "Processes": processes.panels,
}


def build() -> str:
    """The dashboard as the text of its JSON file."""
    board = (
        dashboard.Dashboard("rewardloop")
        .uid("rewardloop")
        .description(
            "Scoring, feedback, learning and swaps. deploy/observability/RUNBOOK.md says what to do about each alert."
        )
        .tags(["rewardloop"])
        .timezone("utc")
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .variables(
            [
                dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
                _choice_of("instance", "Process", "rewardloop_build_info"),
                _choice_of("model", "Model", "rewardloop_resident_versions"),
            ]
        )
    )
    for title, panels in ROWS.items():
        board.with_row(dashboard.Row(title))
        for panel in panels():
            board.with_panel(panel)
    return JSONEncoder(indent=2, sort_keys=True).encode(board.build()) + "\n"


def _choice_of(label: str, title: str, metric: str) -> dashboard.QueryVariable:
    """A selection at the top of the dashboard, of the values that a metric's label has."""
    return (
        dashboard.QueryVariable(label)
        .label(title)
        .datasource(SOURCE)
        .query(f"label_values({metric}, {label})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )
