"""The row "Models and swaps": which versions serve, how swaps go, and how a shadow version compares."""

from __future__ import annotations

from rewardloop_observability.panels import Alarm, Panel, graph
from rewardloop_observability.queries import AT, EVERY, OF, increase, quantiles, rate, share


def panels() -> list[Panel]:
    return [*_active(), *_swaps(), *_shadow(), *_mixtures()]


def _active() -> list[Panel]:
    return [
        graph(
            "Active version",
            "short",
            (f"rewardloop_active_version{{{OF}}}", "{{model}} {{version}} {{instance}}"),
            about="1 for the version that serves. All replicas agree within seconds.",
        ),
        graph(
            "Versions active at once",
            "short",
            (f"count by (model) (count by (model, version) (rewardloop_active_version{{{OF}}}))", "{{model}}"),
            about="Number of versions that replicas serve. If it stays above 1 for minutes, replicas disagree.",
            alarm=Alarm(red=2),
        ),
        graph(
            "Age of the active version",
            "s",
            (
                f"time() - max by (model) (rewardloop_active_version_published_time_seconds{{{OF}}})",
                "{{model}} published",
            ),
            (
                f"time() - max by (model) (rewardloop_active_version_activated_time_seconds{{{OF}}})",
                "{{model}} activated",
            ),
            about="Time since the version was published, and since it serves.",
        ),
        graph(
            "Versions in memory",
            "short",
            (f"sum by (model, role) (rewardloop_resident_versions{{{OF}}})", "{{model}} {{role}}"),
            about="Number of versions in memory, by role.",
            stacked=True,
        ),
    ]


def _swaps() -> list[Panel]:
    return [
        graph(
            "Swaps and failed loads",
            "short",
            (increase("rewardloop_swaps_total", "model"), "{{model}} swapped"),
            (increase("rewardloop_versions_refused_total", "model, reason"), "{{model}} failed {{reason}}"),
            (increase("rewardloop_canary_away_total", "model"), "{{model}} groups of an absent canary"),
            about="Number of swaps, of versions that could not be loaded, and of groups in a canary's share that the"
            " live version scored because the canary's server was away, in each interval.",
        ),
        graph(
            "Time to make a version ready",
            "s",
            *quantiles("rewardloop_swap_seconds", "model", OF),
            about="Time to fetch, load and warm a version. The version before it serves meanwhile.",
        ),
    ]


def _shadow() -> list[Panel]:
    return [
        graph(
            "Shadow agreement",
            "percentunit",
            (
                share("rewardloop_shadow_order_agreement_total", "model, order", 'outcome="agree"'),
                "{{model}} {{order}}",
            ),
            about="How often the shadow version names the same best response (best), and orders two responses in the"
            " same way (pair), as the live version.",
            highest=1,
        ),
        graph(
            "Shadow score less live score",
            "short",
            *quantiles("rewardloop_shadow_score_difference"),
            (f"sum(rate(rewardloop_shadow_dropped_total{{{AT}}}{EVERY}))", "groups not compared/s"),
            about="Difference of calibrated scores, whose standard deviation is about 1.",
            lowest=None,
        ),
    ]


def _mixtures() -> list[Panel]:
    below = rate("rewardloop_below_floor_total", "mixture, part")
    return [
        graph(
            "Responses below a floor",
            "reqps",
            (below, "{{mixture}} {{part}}"),
            (rate("rewardloop_mixture_responses_total", "mixture"), "{{mixture}} scored"),
            about="Responses that mixtures score in each second, and those whose part is below its floor.",
        ),
    ]
