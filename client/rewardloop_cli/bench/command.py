"""bench: how a server answers under a load of one's choice, for sizing a deployment.

A closed loop (callers that wait for their answer) finds what the server can do; an open loop (arrivals that do not
wait) shows the latency that users see at a rate.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rewardloop_cli.bench import plot as bench_plot
from rewardloop_cli.bench import report as bench_report
from rewardloop_cli.bench import texts as bench_texts
from rewardloop_cli.bench.load import Load
from rewardloop_cli.bench.plan import plan_for
from rewardloop_cli.bench.report import Run
from rewardloop_cli.bench.seen import Seen
from rewardloop_cli.failures import UsageError
from rewardloop_client._types import LaneName

# In flight when the saturation is measured that a rate in percent refers to; no fewer than --callers.
SATURATING_CALLERS = 64
_RPCS = ("score", "batch", "stream")


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second, or a share of the measured saturation."""

    value: float
    is_share: bool

    @classmethod
    def parse(cls, option: str, text: str) -> Rate:
        """``12.5`` or ``70%``. Raises UsageError."""
        number = text.strip()
        try:
            value = float(number.removesuffix("%"))
        except ValueError:
            value = float("nan")
        if not 0 < value < float("inf"):
            raise UsageError(f"{option} {text}: is neither requests a second such as 50, nor a share such as 70%")
        return cls(value / 100, True) if number.endswith("%") else cls(value, False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. ``rates`` empty: a closed loop of ``callers``. Times in seconds."""

    server: str
    rpc: str
    callers: int
    rates: tuple[Rate, ...]
    seconds: float
    warm_up_s: float
    timeout_s: float


def run(
    *,
    server: str,
    rpc: str,
    callers: int,
    rate: str | None,
    sweep: str | None,
    seconds: float,
    warm_up: float,
    timeout: float,
    responses: int,
    words: int,
    lengths: str | None,
    texts: Path | None,
    distinct: int,
    batch: int,
    lane: str,
    plot: Path | None,
    json_file: Path | None,
    servers_for: float | None = None,
) -> int:
    """0; 1 when a request failed. Raises UsageError, and RewardloopError when the first request fails."""
    if lane not in ("production", "trainer"):
        raise UsageError(f"--lane {lane}: is not production or trainer")
    if rpc not in _RPCS:
        raise UsageError(f"--rpc {rpc}: is not score, batch or stream")
    if lengths is not None and lengths not in bench_texts.LENGTHS:
        raise UsageError(f"--lengths {lengths}: is not {' or '.join(bench_texts.LENGTHS)}")
    if rate is not None and sweep is not None:
        raise UsageError("give --rate or --sweep, not both")
    if servers_for is not None and rate is not None:
        raise UsageError("--servers-for needs the saturation: leave --rate out")
    if plot is not None:
        bench_plot.check_plot(plot)
    wanted = [Rate.parse("--rate", rate)] if rate is not None else []
    wanted += [Rate.parse("--sweep", part) for part in sweep.split(",")] if sweep is not None else []
    if texts is not None:
        groups = bench_texts.read_groups(texts, distinct)
    else:
        of = bench_texts.LENGTHS[lengths] if lengths else bench_texts.Lengths(words, words, 0.0)
        groups = bench_texts.built_in(of, responses, distinct)
    payloads = bench_texts.payloads(rpc, groups, cast(LaneName, lane), batch)
    if servers_for is not None:
        callers = max(callers, SATURATING_CALLERS)
    plan = Plan(server, rpc, callers, tuple(wanted), seconds, warm_up, timeout)
    console = bench_report.open_console()
    runs = asyncio.run(measure(plan, payloads, console))
    if not any(r.seen.requests or r.seen.failures for r in runs):
        raise UsageError("nothing was answered within the time: measure for longer (--seconds)")
    bench_report.print_runs(console, runs)
    saturations = [r.requests_per_s for r in runs if r.rate is None and r.seen.requests]
    if servers_for is not None and saturations:
        bench_report.print_plan(console, servers_for, saturations[0], plan_for(servers_for, saturations[0]))
    if json_file is not None:
        bench_report.write_json(json_file, runs, server)
    if plot is not None:
        bench_plot.write_plot(plot, runs)
        console.print(f"plot: {plot}", highlight=False)
    return int(any(r.seen.failures for r in runs))


async def measure(plan: Plan, payloads: bench_texts.Payloads, console: Console) -> list[Run]:
    """Every run of the plan, in order; a first Ctrl-C ends the running one and leaves out the rest."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C ends the process

    loop.add_signal_handler(signal.SIGINT, interrupt)
    with ExitStack() as stack:
        stack.callback(loop.remove_signal_handler, signal.SIGINT)
        live = stack.enter_context(Live(console=console, transient=True)) if console.is_terminal else None
        runs: list[Run] = []

        def watch(seen: Seen) -> None:
            if live is not None:
                live.update(Text(_progress(plan, seen, len(runs))))

        async with Load(plan.server, payloads, plan.timeout_s, stop, watch) as load:
            await load.probe()
            saturation = 0.0
            if any(rate.is_share for rate in plan.rates) or not plan.rates:
                callers = max(plan.callers, SATURATING_CALLERS) if plan.rates else plan.callers
                seen = await load.closed(callers, plan.warm_up_s, plan.seconds)
                runs.append(Run(plan.rpc, callers, None, seen))
                saturation = runs[-1].requests_per_s
            for rate in plan.rates:
                if stop.is_set():
                    break
                offered = rate.value * saturation if rate.is_share else rate.value
                if offered == 0:
                    raise UsageError("nothing was answered while the saturation was measured: use a longer --seconds")
                seen = await load.open(offered, plan.warm_up_s, plan.seconds)
                runs.append(Run(plan.rpc, None, offered, seen))
    return runs


def _progress(plan: Plan, seen: Seen, done: int) -> str:
    now = seen.now_s()
    shares = sum(rate.is_share for rate in plan.rates) > 0
    total = max(1, len(plan.rates) + shares)
    phase = f"warm-up, {-now:.0f} s left" if now < 0 else f"{min(now, plan.seconds):.0f} of {plan.seconds:.0f} s"
    rate = seen.requests / now if now > 0 else 0.0
    counts = f"{len(seen.latencies_s)} answered, {rate:.1f}/s; {seen.failures.total()} failed"
    return f"run {done + 1} of {total}: {phase}; {counts}"
