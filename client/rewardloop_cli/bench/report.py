"""Prints the figures of bench as a table, and writes them as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from rewardloop_cli.bench.plan import ServerPlan
from rewardloop_cli.bench.seen import Seen
from rewardloop_cli.failures import UsageError

# From this share of one core on, the generator itself may limit the figures.
_BUSY_GENERATOR = 0.8


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the sorted ``values`` that at least ``share`` of them do not exceed; NaN if empty."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


@dataclass(frozen=True, slots=True)
class Run:
    """One measured window: an open loop of ``rate`` requests a second, or (None) a closed loop of ``callers``."""

    rpc: str
    callers: int | None
    rate: float | None
    seen: Seen

    @property
    def seconds(self) -> float:
        return max(self.seen.end - self.seen.start, 1e-9)

    @property
    def requests_per_s(self) -> float:
        return self.seen.requests / self.seconds

    @property
    def cpu_share(self) -> float:
        """Share of one core that the generator used."""
        return self.seen.cpu_s / self.seconds

    def milliseconds(self, share: float) -> float:
        return 1000 * percentile(sorted(self.seen.latencies_s), share)

    def stage_shares(self) -> dict[str, float]:
        """Return the mean share of each stage in a request's time.

        "other" is the time of the connection, of gRPC on both sides, and of the generator.
        """
        seen = self.seen
        if not seen.groups or not seen.latencies_s:
            return {}
        mean_us = 1e6 * sum(seen.latencies_s) / len(seen.latencies_s)
        sums = {"queue": seen.queue_us, "tokenize": seen.tokenize_us, "run": seen.run_us}
        shares = {stage: total / seen.groups / mean_us for stage, total in sums.items()}
        return {**shares, "other": max(0.0, 1.0 - sum(shares.values()))}

    def to_json(self) -> dict[str, object]:
        """Return the figures for JSON, with times in milliseconds. A figure without values is null."""
        seen, shares = self.seen, (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))

        def percentiles(values: array[float]) -> dict[str, float | None]:
            ordered = sorted(values)
            return {name: _finite(1000 * percentile(ordered, share)) for name, share in shares}

        groups = max(1, seen.groups)
        return {
            "rpc": self.rpc,
            "loop": "closed" if self.rate is None else "open",
            "callers": self.callers,
            "offered_per_s": self.rate,
            "seconds": self.seconds,
            "answered": len(seen.latencies_s),
            "requests_per_s": self.requests_per_s,
            "responses_per_s": seen.responses / self.seconds,
            "tokens_per_s": seen.tokens / self.seconds,
            "latency_ms": percentiles(seen.latencies_s),
            "refused_ms": percentiles(seen.refused_s),
            "sent_late_ms": percentiles(seen.late_s),
            "stage_shares": self.stage_shares(),
            "run_rows": seen.run_rows / groups,
            "run_tokens": seen.run_tokens / groups,
            "failures": dict(seen.failures),
            "versions": dict(seen.versions),
            "generator_cpu_share": self.cpu_share,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def machine() -> dict[str, object]:
    """Describe the machine of the generator, which the server may share."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # this is not Linux, and the platform's name is used
    return {"cores": os.cpu_count(), "cpu": model, "python": platform.python_version()}


def open_console() -> Console:
    """Return a console for standard output that is wide enough for the table if it is no terminal."""
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=max(console.width, 120))


def print_runs(console: Console, runs: Sequence[Run]) -> None:
    """Print the table of all runs, and then their other figures."""
    table = Table(box=SIMPLE)
    for name in ("load", "answered", "failed", "req/s", "resp/s", "tokens/s", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="left" if name == "load" else "right", no_wrap=True)
    for run in runs:
        seen = run.seen
        table.add_row(
            f"{run.callers} callers" if run.rate is None else f"{run.rate:.1f}/s",
            str(len(seen.latencies_s)),
            str(seen.failures.total()),
            f"{run.requests_per_s:.1f}",
            f"{seen.responses / run.seconds:.1f}",
            f"{seen.tokens / run.seconds:.0f}",
            *(f"{run.milliseconds(share):.2f}" for share in (0.5, 0.9, 0.99, 1.0)),
        )
    console.print(table)
    loops = {run.rate is None for run in runs}
    closed = "closed loop (from sending; a slow server is asked less often)"
    opened = "open loop (Poisson; from when each request was due)"
    console.print(
        "latencies in milliseconds, " + "; ".join(([closed] if True in loops else []) + [opened] * (False in loops))
    )
    for run in runs:
        _print_details(console, run, named=len(runs) > 1)
    here = machine()
    console.print(f"{here['cores']} cores, {here['cpu']}, Python {here['python']}", highlight=False)


def _print_details(console: Console, run: Run, *, named: bool) -> None:
    seen, groups = run.seen, max(1, run.seen.groups)
    parts = [f"{stage} {100 * share:.0f}%" for stage, share in run.stage_shares().items()]
    if seen.run_rows:
        parts.append(f"a run holds {seen.run_rows / groups:.1f} rows, {seen.run_tokens / groups:.0f} tokens")
    if seen.late_s:
        parts.append(f"sent late by p99 {1000 * percentile(sorted(seen.late_s), 0.99):.1f} ms")
    busy = " (the generator may be the limit)" if run.cpu_share >= _BUSY_GENERATOR else ""
    parts.append(f"generator {100 * run.cpu_share:.0f}% of a core{busy}")
    load = f"{run.callers} callers: " if run.rate is None else f"{run.rate:.1f}/s: "
    console.print((load if named else "") + "; ".join(parts), highlight=False)
    for title, counts in (("reward versions", seen.versions), ("failures", seen.failures)):
        if counts:
            console.print(f"{title}: " + ", ".join(f"{name} x{n}" for name, n in counts.most_common()), highlight=False)


def print_plan(console: Console, rate: float, saturation: float, plan: ServerPlan) -> None:
    """Print how many servers like the measured one a rate needs."""
    away = f"{plan.load_without_one:.0%}" if math.isfinite(plan.load_without_one) else "no server is left"
    console.print(
        f"{rate:g} requests/s at {saturation:.1f}/s a server: {plan.servers} servers, each at {plan.load:.0%}"
        f" (with one away: {away}); mean wait about {plan.mean_wait:.1f} times a request's run (M/G/1)",
        highlight=False,
    )


def write_json(path: Path, runs: Sequence[Run], server: str) -> None:
    """Write the figures to ``path``. Raises UsageError if it cannot be written."""
    content = {"server": server, "machine": machine(), "runs": [run.to_json() for run in runs]}
    try:
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from error
