"""Builds the dashboard's panels, so that all of them look alike. The files of `rows` say what each panel shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

from rewardloop_observability.queries import Query

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

# Grafana's grid has 24 columns: three graphs or six numbers fill a line.
_GRAPH_WIDTH, _GRAPH_HEIGHT = 8, 8
_NUMBER_WIDTH, _NUMBER_HEIGHT = 4, 4

Panel = stat.Panel | timeseries.Panel


@dataclass(frozen=True, slots=True)
class Alarm:
    """The values at which a panel changes its colour.

    Attributes:
        red: The value from which something is wrong.
        amber: The value from which a look is worth while, if there is one. It is below ``red``.
        is_low_bad: True if values below ``red`` are wrong, instead of values above it.
    """

    red: float
    amber: float | None = None
    is_low_bad: bool = False

    def thresholds(self) -> ThresholdsConfig:
        """The same as Grafana's thresholds, lowest first."""
        below, above = ("red", "green") if self.is_low_bad else ("green", "red")
        steps = [Threshold(value=None, color=below)]
        if self.amber is not None:
            steps.append(Threshold(value=self.amber, color="orange"))
        steps.append(Threshold(value=self.red, color=above))
        return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def graph(
    title: str,
    unit: str,
    *queries: Query,
    about: str,
    alarm: Alarm | None = None,
    stacked: bool = False,
    lowest: float | None = 0,
    highest: float | None = None,
) -> timeseries.Panel:
    """A panel of lines over time.

    Args:
        title: The panel's title.
        unit: Grafana's name of the unit, such as ``s``, ``percentunit`` or ``reqps``.
        queries: One or more lines each.
        about: The text behind the panel's information mark.
        alarm: Values that are drawn as dashed lines.
        stacked: Whether the lines are stacked on each other.
        lowest: Lower end of the axis; None lets Grafana choose it.
        highest: Upper end of the axis; None lets Grafana choose it.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .height(_GRAPH_HEIGHT)
        .span(_GRAPH_WIDTH)
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
    if alarm is not None:
        panel.thresholds(alarm.thresholds())
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    _ask(panel, queries)
    return panel


def number(title: str, unit: str, *queries: Query, about: str, alarm: Alarm | None = None) -> stat.Panel:
    """A panel that shows the last value in large type. The arguments are those of `graph`."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .height(_NUMBER_HEIGHT)
        .span(_NUMBER_WIDTH)
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.VALUE)
    )
    if alarm is not None:
        panel.thresholds(alarm.thresholds())
    _ask(panel, queries)
    return panel


def _ask(panel: Panel, queries: Sequence[Query]) -> None:
    for i, (expression, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + i)).range()
        panel.with_target(query.datasource(SOURCE))
