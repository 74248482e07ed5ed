"""The row "Judges": what models that judge agree on with people, what they cost, and what a constitution changed."""

from __future__ import annotations

from rewardloop_observability.panels import Panel, graph
from rewardloop_observability.queries import AT, increase, rate

_QUALITY = "rewardloop_judge_quality"


def panels() -> list[Panel]:
    return [*_quality(), *_work(), *_money()]


def _quality() -> list[Panel]:
    return [
        graph(
            "Judge and people",
            "percentunit",
            (
                f'max by (instance, figure) ({_QUALITY}{{{AT}, bound="value", '
                'figure=~"agreement|consistency|first_shown|weight"})',
                "{{instance}} {{figure}}",
            ),
            (
                f'min by (instance) ({_QUALITY}{{{AT}, bound="lower", figure="agreement"}})',
                "{{instance}} agreement, lower bound",
            ),
            ("max by (source) (rewardloop_trainer_source_weight)", "weight of {{source}} in the last round"),
            about="On pairs that people judged too: agreement with them, the same choice in both orders, votes for the"
            " response shown first, and the weight of the judge's signals beside a person's.",
            highest=1,
        ),
        graph(
            "Biases of the judge",
            "percentunit",
            (
                f'max by (instance, figure) ({_QUALITY}{{{AT}, bound="value", '
                'figure=~"longer|overconfidence|calibration_error"})',
                "{{instance}} {{figure}}",
            ),
            about="Longer responses beyond people's choices, stated confidence less agreement, and the calibration"
            " error over ten bins. 0 is none.",
            lowest=None,
        ),
        graph(
            "Muted judges",
            "short",
            (f"max by (instance) (rewardloop_judge_muted{{{AT}}})", "{{instance}} is muted"),
            (f"max by (instance) (rewardloop_judge_away{{{AT}}})", "the model of {{instance}} is away"),
            ("max(rewardloop_trainer_muted_sources)", "sources left out by the last round"),
            about="1 while a judge's weight is shown to be below its floor. Then it judges only pairs that people"
            " judged.",
        ),
    ]


def _work() -> list[Panel]:
    return [
        graph(
            "Pairs of the judge",
            "short",
            (f"sum by (state, picked) (rewardloop_judge_pairs{{{AT}}})", "{{state}} {{picked}}"),
            (f"sum(rewardloop_judge_shared_pairs{{{AT}}})", "judged by people too"),
            (increase("rewardloop_judge_unjudged_total", "reason", AT), "no opinion: {{reason}}"),
            about="Pairs by their state and by why they were picked, and pairs that have no opinion.",
        ),
        graph(
            "Signals and critiques of models",
            "reqps",
            (rate("rewardloop_judge_signals_total", "outcome"), "signals {{outcome}}"),
            (rate("rewardloop_judge_critiques_total", "principle, outcome"), "{{principle}} {{outcome}}"),
            about="Signals of judges by what the server said, and critiques by principle and what came of them.",
        ),
    ]


def _money() -> list[Panel]:
    return [
        graph(
            "Calls of models",
            "reqps",
            (rate("rewardloop_judge_calls_total", "outcome"), "{{outcome}}"),
            about="Attempts by how they ended. Cached ones cost nothing.",
        ),
        graph(
            "Budget of the day",
            "percentunit",
            (
                f"max by (instance, unit) (rewardloop_judge_spent{{{AT}}} / rewardloop_judge_budget{{{AT}}})",
                "{{instance}} {{unit}}",
            ),
            (f"max by (instance) (rewardloop_judge_budget_spent{{{AT}}})", "{{instance}} waits for the next day"),
            about="Calls and tokens that are spent or reserved, over those of a day in UTC.",
        ),
    ]
