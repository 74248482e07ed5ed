"""The rows about what is served: now, scoring, models and swaps."""

from __future__ import annotations

from panels import Panel, graph, number
from queries import AGREE, AT, EVERY, HIT, OF, mean, quantile, quantiles, rate


def overview() -> list[Panel]:
    errors = 'code!~"OK|CANCELLED|INVALID_ARGUMENT|NOT_FOUND"'
    return [
        number("Requests", "reqps", (f"sum(rate(rewardloop_requests_total{{{AT}}}{EVERY}))", ""), about="All RPCs."),
        number(
            "Failing",
            "percentunit",
            (
                f"sum(rate(rewardloop_requests_total{{{AT}, {errors}}}{EVERY}))"
                f" / sum(rate(rewardloop_requests_total{{{AT}}}{EVERY}))",
                "",
            ),
            about="RPCs that did not do what was asked, callers' own mistakes left out.",
            amber=0.001,
            red=0.01,
        ),
        number(
            "Score p99",
            "s",
            (quantile(0.99, "rewardloop_request_seconds", where=f'{AT}, method="RewardService/Score"'), ""),
            about="Latency of single scores, from admission to reply.",
            amber=0.25,
            red=1,
        ),
        number(
            "Warm models",
            "short",
            (f'sum by (model) (rewardloop_resident_versions{{{OF}, role="active"}})', "{{model}}"),
            about="Processes that serve each model.",
            red=1,
            is_low_bad=True,
        ),
        number(
            "Reward hacking",
            "short",
            ("max(rewardloop_reward_hacking)", ""),
            about="1: publishing policies is halted.",
            red=1,
        ),
        number(
            "Alerts firing",
            "short",
            ('count(ALERTS{alertname=~"Rewardloop.*", alertstate="firing"}) or vector(0)', ""),
            about="Of alerts.yml; RUNBOOK.md says what to do.",
            red=1,
        ),
    ]


def scoring() -> list[Panel]:
    errors = f'{AT}, code!~"OK|CANCELLED"'
    return [
        graph(
            "Requests by method",
            "reqps",
            (rate("rewardloop_requests_total", "method"), "{{method}}"),
            about="RPCs that ended.",
            stacked=True,
        ),
        graph(
            "Errors by code",
            "reqps",
            (rate("rewardloop_requests_total", "method, code", errors), "{{method}} {{code}}"),
            about="RPCs that ended otherwise than OK or by their caller.",
        ),
        graph(
            "Latency",
            "s",
            *quantiles("rewardloop_request_seconds", "method"),
            about="From an RPC's admission to its end. Streams last as long as their callers like.",
        ),
        graph(
            "Refusals by reason",
            "reqps",
            (rate("rewardloop_rejected_total", "reason"), "{{reason}}"),
            about="Requests, and items of batches.",
        ),
        graph(
            "In flight",
            "short",
            (f"sum by (method) (rewardloop_requests_in_flight{{{AT}}})", "{{method}}"),
            about="RPCs that were admitted and have not ended.",
        ),
        graph(
            "Stages, p99",
            "s",
            (quantile(0.99, "rewardloop_stage_seconds", "stage, lane"), "{{lane}} {{stage}}"),
            about="Where a scored group's time goes.",
        ),
        graph(
            "Stages, mean",
            "s",
            (mean("rewardloop_stage_seconds", "stage", f'{AT}, stage!="total"'), "{{stage}}"),
            about="Queue, tokenize and run, one above the other.",
            stacked=True,
        ),
        graph(
            "Lane saturation",
            "percentunit",
            (f"max by (lane, instance) (rewardloop_queue_saturation_ratio{{{AT}}})", "{{lane}} {{instance}}"),
            about="What waits over the nearer bound, in tokens or in time of work. At 1 requests are refused.",
            amber=0.5,
            red=0.9,
        ),
        graph(
            "Oldest wait in a lane",
            "s",
            (f"max by (lane, instance) (rewardloop_queue_oldest_wait_seconds{{{AT}}})", "{{lane}} {{instance}}"),
            (f"max by (lane, instance) (rewardloop_queue_work_seconds{{{AT}}})", "{{lane}} {{instance}} to be done"),
            about="Of the group that waits longest; and how long the engine will work on all that waits.",
        ),
        graph(
            "Queued tokens",
            "short",
            (f"sum by (lane) (rewardloop_queue_tokens{{{AT}}})", "{{lane}}"),
            (f"sum(rewardloop_tokenize_waiting_requests{{{AT}}})", "requests to be tokenized"),
            (f"sum(rewardloop_queue_rows{{{AT}}})", "candidates to be sampled"),
            about="Tokens that wait for the engine, requests for a thread that tokenizes, candidates for the policy.",
        ),
        graph(
            "Throughput of the engine",
            "short",
            (rate("rewardloop_batch_tokens_sum", "job"), "{{job}} tokens/s"),
            (rate("rewardloop_batch_rows_sum", "job"), "{{job}} rows/s"),
            about="Without padding.",
        ),
        graph(
            "Rows and padding of a run",
            "short",
            (mean("rewardloop_batch_rows", "job"), "{{job}} rows"),
            (mean("rewardloop_padding_ratio", "job"), "{{job}} padding"),
            about="Means. A run of many rows uses the engine well; padding wastes it.",
        ),
        graph(
            "Cache hits",
            "percentunit",
            (
                f"{rate('rewardloop_cache_lookups_total', 'lane', HIT)}"
                f" / {rate('rewardloop_cache_lookups_total', 'lane')}",
                "{{lane}}",
            ),
            about="Rows answered from the cache of scores. Production looks there only with --cache-production.",
            highest=1,
        ),
    ]


def models() -> list[Panel]:
    return [
        graph(
            "Active version",
            "short",
            (f"rewardloop_active_version{{{OF}}}", "{{model}} {{version}} {{instance}}"),
            about="1 for the version that serves. Replicas agree within seconds.",
        ),
        graph(
            "Versions active at once",
            "short",
            (f"count by (model) (count by (model, version) (rewardloop_active_version{{{OF}}}))", "{{model}}"),
            about="Over all replicas; more than 1 for long is skew.",
            red=2,
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
            about="Since it was published, and since it serves.",
        ),
        graph(
            "Versions in memory",
            "short",
            (f"sum by (model, role) (rewardloop_resident_versions{{{OF}}})", "{{model}} {{role}}"),
            about="By role.",
            stacked=True,
        ),
        graph(
            "Swaps and failed loads",
            "short",
            (f"sum by (model) (increase(rewardloop_swaps_total{{{OF}}}{EVERY}))", "{{model}} swapped"),
            (
                f"sum by (model, reason) (increase(rewardloop_versions_refused_total{{{OF}}}{EVERY}))",
                "{{model}} failed {{reason}}",
            ),
            about="In each interval.",
        ),
        graph(
            "Time to make a version ready",
            "s",
            *quantiles("rewardloop_swap_seconds", "model", OF),
            about="Fetch, load and warm, beside the one that serves.",
        ),
        graph(
            "Shadow agreement",
            "percentunit",
            (
                f"{rate('rewardloop_shadow_order_agreement_total', 'order', AGREE)}"
                f" / {rate('rewardloop_shadow_order_agreement_total', 'order')}",
                "{{order}}",
            ),
            about="How often the shadow version orders responses as the live one does: the best one, and pairs.",
            highest=1,
        ),
        graph(
            "Shadow score less live score",
            "short",
            *quantiles("rewardloop_shadow_score_difference"),
            (f"sum(rate(rewardloop_shadow_dropped_total{{{AT}}}{EVERY}))", "groups not compared/s"),
            about="Calibrated scores have about unit spread.",
            lowest=None,
        ),
    ]
