"""The command `status`: health, versions, traffic and training at a glance, also while parts are down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop_cli.connect import open_client
from rewardloop_cli.metrics_page import MetricsPage, PageUnreachable, Sample
from rewardloop_cli.models import active, age, headline
from rewardloop_client import DeadlineExceeded, NotFound, RewardloopClient, RewardloopError, Unimplemented, Unreachable

_SERVICES = ("RewardService", "FeedbackService", "PolicyService", "ModelService")
_TIMEOUT_S = 2.0

# The words of `rewardloop status` for how durable the server found Redis to be.
_DURABILITIES = {
    "always": "loses nothing (appendfsync always)",
    "everysec": "may lose its last second (appendfsync everysec)",
    "no": "may lose what the system has not written (appendfsync no)",
    "appended": "has an append-only file (how often it is synced is unknown)",
    "snapshots": "LOSES what was acknowledged since its last snapshot (appendonly no)",
    "not_appended": "LOSES what was acknowledged (appendonly no)",
    "memory": "LOSES everything (appendonly no, no snapshots)",
    "unknown": "unknown (its user may not ask)",
}

Figures: TypeAlias = Iterable[tuple[str, str]]


def run(server: str, server_metrics: str, trainer_metrics: str) -> int:
    """Print the status. Returns 1 if a service or a metrics page is down, else 0."""
    console = Console(highlight=False)
    with open_client(server, timeout_s=_TIMEOUT_S, max_attempts=1) as client:
        health = {service: _health(client, service) for service in _SERVICES}
        console.print(_services(server, health))
        if set(health.values()) != {"unreachable"}:
            console.print(_versions(client))
            console.print(_loop(client))
    pages_up = [
        _print_page(console, "server", server_metrics, _server_figures),
        _print_page(console, "trainer", trainer_metrics, _trainer_figures),
    ]
    return 0 if all(pages_up) and set(health.values()) == {"SERVING"} else 1


def _health(client: RewardloopClient, service: str) -> str:
    try:
        return "SERVING" if client.health(f"rewardloop.v1.{service}") else "NOT SERVING"
    except NotFound:
        return "unknown"
    except (Unreachable, DeadlineExceeded):
        return "unreachable"
    except RewardloopError as error:
        return error.reason or type(error).__name__


def _services(server: str, health: dict[str, str]) -> Table:
    table = Table("service", "health", title=f"server {server}", title_justify="left")
    for service, state in health.items():
        table.add_row(service, Text(state, style="green" if state == "SERVING" else "red"))
    return table


def _models(client: RewardloopClient) -> Sequence[str]:
    try:
        return client.models(timeout_s=3.0)
    except RewardloopError:  # the rows of the usual models say what is wrong
        return (REWARD, POLICY)


def _versions(client: RewardloopClient) -> Table:
    table = Table("model", "active version", "age", "digest", "gate", title="models", title_justify="left")
    for model in _models(client):
        try:
            info = active(client, model)
        except RewardloopError as error:
            table.add_row(model, Text(error.reason or type(error).__name__, style="red"), "", "", "")
            continue
        if info is None:
            table.add_row(model, "none", "", "", "")
        else:
            table.add_row(model, info.version, age(info.create_time), info.digest[:12], headline(info))
    return table


def _loop(client: RewardloopClient) -> Table:
    """Show what the models wait for and which alerts hold: what the console's page Watch shows."""
    table = Table("loop", "", title_justify="left")
    try:
        found = client.operations.status(timeout_s=3.0)
    except Unimplemented:
        table.add_row("waits", "an earlier release of the server does not say")
        return table
    except RewardloopError as error:
        table.add_row("waits", Text(error.reason or type(error).__name__, style="red"))
        return table
    if found.engine:
        table.add_row("engine", found.engine)
    for model in found.models:
        table.add_row("waits", model.waiting_for)
    for alert in found.alerts:
        table.add_row(alert.severity, Text(f"{alert.name}: {alert.text}", style="red"))
    return table


def _print_page(console: Console, name: str, url: str, figures_of: Callable[[MetricsPage], Figures]) -> bool:
    table = Table(name, url, title_justify="left")
    try:
        page = MetricsPage.fetch(url, _TIMEOUT_S)
    except PageUnreachable as error:
        table.add_row("metrics", Text(f"down: {error}", style="red"))
        console.print(table)
        return False
    for label, value in figures_of(page):
        table.add_row(label, value)
    console.print(table)
    return True


def _server_figures(page: MetricsPage) -> Figures:
    by_code: dict[tuple[str, str], float] = {}
    for sample in page.samples("rewardloop_requests_total"):
        key = (sample.labels.get("method", "?"), sample.labels.get("code", "?"))
        by_code[key] = by_code.get(key, 0.0) + sample.value
    for (method, code), count in sorted(by_code.items()):
        if count:
            yield f"{method} {code}", _count(count)
    for stage in ("queue", "tokenize", "run", "total"):
        middle, tail = (page.quantile("rewardloop_stage_seconds", share, stage=stage) for share in (0.5, 0.99))
        if middle is not None and tail is not None:
            yield f"{stage} p50 / p99", f"{1000 * middle:.2f} / {1000 * tail:.2f} ms"
    for sample in page.samples("rewardloop_queue_tokens"):
        yield f"queued tokens, {sample.labels.get('lane', '?')}", _count(sample.value)
    for sample in page.samples("rewardloop_feedback_events_total"):
        if sample.value:
            yield f"feedback {sample.labels.get('kind', '?')} {sample.labels.get('outcome', '?')}", _count(sample.value)
    yield from _single(page, "feedback stream length", "rewardloop_stream_length")
    for sample in page.samples("rewardloop_version_stuck_runs"):
        which = f"{sample.labels.get('model', '?')} {sample.labels.get('version', '?')}"
        yield f"runs that did not end, {which}", _count(sample.value)
    yield from _redis_figures(page)
    for sample in page.samples("rewardloop_swaps_total"):
        yield f"swaps, {sample.labels.get('model', '?')}", _count(sample.value)
    fresh = page.quantile("rewardloop_feedback_to_live_seconds", 0.5)
    if fresh is not None:
        yield "signal to live model, median", f"{fresh:.1f} s"


def _redis_figures(page: MetricsPage) -> Figures:
    for sample in page.samples("rewardloop_redis_durability"):
        if sample.value:
            word = sample.labels.get("durability", "unknown")
            yield "Redis, if it is killed", _DURABILITIES.get(word, word)
    required = page.total("rewardloop_redis_replicas_required")
    replicas = page.total("rewardloop_redis_replicas")
    if required is not None:
        there = "unknown" if replicas is None or math.isnan(replicas) else _count(replicas)
        yield "Redis, replicas", f"{there}, of which {_count(required)} must have a signal before it is acknowledged"
    for sample in page.samples("rewardloop_redis_unreplicated_total"):
        if sample.value:
            yield f"refused for lack of replicas, {sample.labels.get('written', '?')}", _count(sample.value)
    for sample in page.samples("rewardloop_pointer_source"):
        if sample.value and sample.labels.get("source") == "store":
            yield _of_model("pointer", sample), "read from the store, because Redis is away"


def _trainer_figures(page: MetricsPage) -> Figures:
    for sample in page.samples("rewardloop_trainer_phase"):
        if sample.value:
            yield _of_model("phase", sample), sample.labels.get("phase", "?")
    for sample in page.samples("rewardloop_trainer_signals_total"):
        yield f"signals, {sample.labels.get('kind', '?')}", _count(sample.value)
    for sample in page.samples("rewardloop_trainer_unread_signals"):
        if sample.value:
            reason = sample.labels.get("reason", "?")
            yield _of_model("left out", sample), f"{_count(sample.value)} new signals: {reason}"
    yield from _single(page, "dead letters", "rewardloop_trainer_dead_letters_total")
    yield from _single(page, "rows in the ledger", "rewardloop_trainer_ledger_rows")
    yield from _single(page, "waiting in the stream", "rewardloop_trainer_stream_pending")
    for sample in page.samples("rewardloop_trainer_rounds_total"):
        yield f"rounds, {sample.labels.get('model', '?')} {sample.labels.get('outcome', '?')}", _count(sample.value)
    for sample in page.samples("rewardloop_trainer_heldout_accuracy"):
        name = f"held-out accuracy, {sample.labels.get('model', '?')} {sample.labels.get('side', '')}".rstrip()
        if not math.isnan(sample.value):
            yield name, f"{sample.value:.3f}"
    for sample in page.samples("rewardloop_trainer_loss"):
        # The gauge is 0 until a first step has set it.
        steps = page.total("rewardloop_trainer_steps_total", **sample.labels)
        has_trained = sample.value != 0 if steps is None else steps > 0
        yield _of_model("loss", sample), f"{sample.value:.4f}" if has_trained else "-"


def _of_model(label: str, sample: Sample) -> str:
    model = sample.labels.get("model", "")
    return f"{label}, {model}" if model else label


def _single(page: MetricsPage, label: str, name: str) -> Figures:
    value = page.total(name)
    if value is not None:
        yield label, _count(value)


def _count(value: float) -> str:
    return f"{value:,.0f}"
