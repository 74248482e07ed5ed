"""The row "Scoring": requests, the queue in front of the engine, and the engine."""

from __future__ import annotations

from rewardloop_observability.panels import Alarm, Panel, graph
from rewardloop_observability.queries import AT, increase, mean, quantile, quantiles, rate, share


def panels() -> list[Panel]:
    return [*_requests(), *_stages(), *_queue(), *_engine(), *_engines()]


def _requests() -> list[Panel]:
    errors = f'{AT}, code!~"OK|CANCELLED"'
    return [
        graph(
            "Requests by method",
            "reqps",
            (rate("rewardloop_requests_total", "method"), "{{method}}"),
            about="RPCs that end in each second.",
            stacked=True,
        ),
        graph(
            "Errors by code",
            "reqps",
            (rate("rewardloop_requests_total", "method, code", errors), "{{method}} {{code}}"),
            about="RPCs that end in each second with another code than OK or CANCELLED.",
        ),
        graph(
            "Latency",
            "s",
            *quantiles("rewardloop_request_seconds", "method"),
            about="Time from an RPC's admission to its end. A stream lasts as long as its caller keeps it open.",
        ),
        graph(
            "Refusals by reason",
            "reqps",
            (rate("rewardloop_rejected_total", "reason"), "{{reason}}"),
            about="Requests, and items of batches, that are refused in each second.",
        ),
        graph(
            "In flight",
            "short",
            (f"sum by (method) (rewardloop_requests_in_flight{{{AT}}})", "{{method}}"),
            about="RPCs that were admitted and have not ended.",
        ),
    ]


def _stages() -> list[Panel]:
    return [
        graph(
            "Stages, p99",
            "s",
            (quantile(0.99, "rewardloop_stage_seconds", "stage, lane"), "{{lane}} {{stage}}"),
            about="99th percentile of the time that a group of responses spends in each stage of scoring.",
        ),
        graph(
            "Stages, mean",
            "s",
            (mean("rewardloop_stage_seconds", "stage", f'{AT}, stage!="total"'), "{{stage}}"),
            about="Mean time of queue, tokenize and run, stacked.",
            stacked=True,
        ),
    ]


def _queue() -> list[Panel]:
    return [
        graph(
            "Lane saturation",
            "percentunit",
            (f"max by (lane, instance) (rewardloop_queue_saturation_ratio{{{AT}}})", "{{lane}} {{instance}}"),
            about="How full a lane is, by tokens or by work, whichever is greater. A full lane refuses requests.",
            alarm=Alarm(amber=0.5, red=0.9),
        ),
        graph(
            "Oldest wait in a lane",
            "s",
            (f"max by (lane, instance) (rewardloop_queue_oldest_wait_seconds{{{AT}}})", "{{lane}} {{instance}}"),
            (f"max by (lane, instance) (rewardloop_queue_work_seconds{{{AT}}})", "{{lane}} {{instance}} to be done"),
            about="How long the oldest group has waited, and how long the engine needs for everything that waits.",
        ),
        graph(
            "Queued tokens",
            "short",
            (f"sum by (lane) (rewardloop_queue_tokens{{{AT}}})", "{{lane}}"),
            (f"sum(rewardloop_tokenize_waiting_requests{{{AT}}})", "requests to be tokenized"),
            (f"sum(rewardloop_queue_rows{{{AT}}})", "candidates to be sampled"),
            about="Tokens that wait for the engine, requests that wait for a thread that tokenizes them, and candidates"
            " that wait for the policy worker.",
        ),
    ]


def _engine() -> list[Panel]:
    return [
        graph(
            "Throughput of the engine",
            "short",
            (rate("rewardloop_batch_tokens_sum", "job"), "{{job}} tokens/s"),
            (rate("rewardloop_batch_rows_sum", "job"), "{{job}} rows/s"),
            about="Tokens and rows that the engine runs in each second. Padding does not count.",
        ),
        graph(
            "Runs at once",
            "short",
            (rate("rewardloop_run_seconds_total", "instance, device"), "{{instance}} {{device}}"),
            about="Mean number of runs on each CPU and GPU. One that is always busy has as many as --streams says.",
        ),
        graph(
            "Rows and padding of a run",
            "short",
            (mean("rewardloop_batch_rows", "job"), "{{job}} rows"),
            (mean("rewardloop_padding_ratio", "job"), "{{job}} padding"),
            about="Mean rows of a run, and mean share of its tokens that is padding. Many rows use the engine well;"
            " padding wastes it.",
        ),
        graph(
            "Failed runs",
            "short",
            (increase("rewardloop_failed_runs_total", "job, outcome", AT), "{{job}} {{outcome}}"),
            about="Number of engine runs that failed in each interval. Their requests ran again in parts (split), the"
            " one request at fault got an error (isolated), or all did with a version that no longer runs (broken).",
        ),
        graph(
            "Stuck runs",
            "short",
            (increase("rewardloop_stuck_runs_total", "job, model", AT), "{{job}} {{model}}"),
            (
                f"sum by (instance, model, version) (rewardloop_version_stuck_runs{{{AT}}})",
                "{{instance}} {{model}} {{version}}",
            ),
            (f"max by (instance, model) (rewardloop_engine_stuck{{{AT}}})", "{{instance}} {{model}} turns away"),
            about="Number of runs that did not end in time in each interval, the same by version since the process"
            " began, and whether requests are turned away for one now.",
        ),
        graph(
            "Cache hits",
            "percentunit",
            (share("rewardloop_cache_lookups_total", "lane", 'outcome="hit"'), "{{lane}}"),
            about="Share of rows whose score was in the cache. Production uses the cache only with --cache-production.",
            highest=1,
        ),
    ]


def _engines() -> list[Panel]:
    return [
        graph(
            "Engines",
            "short",
            (f"sum by (job, engine) (rewardloop_scoring_engine{{{AT}}})", "{{job}} {{engine}}"),
            about="Servers whose reward models run by ONNX Runtime (onnx) and by torch (torch).",
        ),
        graph(
            "Prompts kept by torch",
            "short",
            (rate("rewardloop_prefix_lookups_total", "job, outcome"), "{{job}} {{outcome}} /s"),
            (f"sum by (job) (rewardloop_prefix_cache_bytes{{{AT}}}) / 2^20", "{{job}} MiB"),
            about="Runs whose prompt was kept (hit) or not (miss), and how much is kept (--prefix-cache-mib).",
        ),
    ]
