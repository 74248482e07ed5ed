"""How the dashboard's panels look: what a panel shows is said in `dashboard.py`."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8

Panel = stat.Panel | timeseries.Panel

# (PromQL, legend)
Query = tuple[str, str]


def graph(
    title: str,
    unit: str,
    *queries: Query,
    about: str,
    width: int = 8,
    amber: float | None = None,
    red: float | None = None,
    stacked: bool = False,
    highest: float | None = None,
    lowest: float | None = 0,
) -> timeseries.Panel:
    """Lines over time. ``amber``, ``red``: where values begin to be worth a look, and to be wrong; drawn as lines."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .height(HEIGHT)
        .span(width)
        .line_width(1)
        .fill_opacity(25 if stacked else 8)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if lowest is not None:
        panel.min(lowest)
    if highest is not None:
        panel.max(highest)
    if red is not None:
        panel.thresholds(_thresholds(amber, red))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    _ask(panel, queries)
    return panel


def number(
    title: str,
    unit: str,
    *queries: Query,
    about: str,
    width: int = 4,
    amber: float | None = None,
    red: float | None = None,
    is_low_bad: bool = False,
) -> stat.Panel:
    """The last value, large. ``is_low_bad``: red below ``red`` instead of above it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .height(4)
        .span(width)
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.VALUE)
    )
    if red is not None:
        panel.thresholds(_low_thresholds(red) if is_low_bad else _thresholds(amber, red))
    _ask(panel, queries)
    return panel


def _ask(panel: Panel, queries: Sequence[Query]) -> None:
    for i, (expression, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + i)).range()
        panel.with_target(query.datasource(SOURCE))


def _thresholds(amber: float | None, red: float) -> ThresholdsConfig:
    steps = [Threshold(value=None, color="green")]
    if amber is not None:
        steps.append(Threshold(value=amber, color="orange"))
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([*steps, Threshold(value=red, color="red")])


def _low_thresholds(red: float) -> ThresholdsConfig:
    steps = [Threshold(value=None, color="red"), Threshold(value=red, color="green")]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
