"""The row "Now": one number for each thing that an operator looks at first."""

from __future__ import annotations

from rewardloop_observability.panels import Alarm, Panel, number
from rewardloop_observability.queries import AT, EVERY, OF, quantile


def panels() -> list[Panel]:
    errors = 'code!~"OK|CANCELLED|INVALID_ARGUMENT|NOT_FOUND"'
    return [
        number(
            "Requests",
            "reqps",
            (f"sum(rate(rewardloop_requests_total{{{AT}}}{EVERY}))", ""),
            about="RPCs that end in each second, of all methods.",
        ),
        number(
            "Failing",
            "percentunit",
            (
                f"sum(rate(rewardloop_requests_total{{{AT}, {errors}}}{EVERY}))"
                f" / sum(rate(rewardloop_requests_total{{{AT}}}{EVERY}))",
                "",
            ),
            about="Share of RPCs that fail. Mistakes of callers and calls that they cancel do not count.",
            alarm=Alarm(amber=0.001, red=0.01),
        ),
        number(
            "Score p99",
            "s",
            (quantile(0.99, "rewardloop_request_seconds", where=f'{AT}, method="RewardService/Score"'), ""),
            about="99th percentile of the time from a Score call's admission to its reply.",
            alarm=Alarm(amber=0.25, red=1),
        ),
        number(
            "Warm models",
            "short",
            (f'sum by (model) (rewardloop_resident_versions{{{OF}, role="active"}})', "{{model}}"),
            about="Number of processes that serve each model.",
            alarm=Alarm(red=1, is_low_bad=True),
        ),
        number(
            "Reward hacking",
            "short",
            ("max(rewardloop_reward_hacking)", ""),
            about="1 while the trainer publishes no policies because it suspects reward hacking.",
            alarm=Alarm(red=1),
        ),
        number(
            "Alerts firing",
            "short",
            ('count(ALERTS{alertname=~"Rewardloop.*", alertstate="firing"}) or vector(0)', ""),
            about="Number of alerts of alerts.yml that fire. RUNBOOK.md says what to do about each.",
            alarm=Alarm(red=1),
        ),
    ]
