"""The command `bench`: measures how a server answers under a load, for sizing a deployment.

A closed loop, whose callers wait for their answers, finds the highest throughput of the server. An open loop, whose
requests do not wait, shows the latency that users see at a given rate.
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
from rewardloop_client import ScoreGroup
from rewardloop_client._types import LaneName

# Least requests in flight while the saturation is measured to which a rate in percent refers.
SATURATING_CALLERS = 64
_RPCS = ("score", "batch", "stream")


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate in requests a second, or as a share of the measured saturation."""

    value: float
    is_share: bool

    @classmethod
    def parse(cls, option: str, text: str) -> Rate:
        """Read a text such as ``12.5`` or ``70%``. Raises UsageError."""
        number = text.strip()
        try:
            value = float(number.removesuffix("%"))
        except ValueError:
            value = float("nan")
        if not 0 < value < float("inf"):
            raise UsageError(f"{option} {text}: is neither requests a second such as 50, nor a share such as 70%")
        return cls(value / 100, True) if number.endswith("%") else cls(value, False)


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The options of `rewardloop bench` as the command line gives them; its help describes each."""

    server: str
    rpc: str
    callers: int
    rate: str | None
    sweep: str | None
    seconds: float
    warm_up_s: float
    timeout_s: float
    responses: int
    words: int
    lengths: str | None
    texts: Path | None
    distinct: int
    batch: int
    lane: str
    plot: Path | None
    json_file: Path | None
    servers_for: float | None = None

    def check(self) -> None:
        """Raise UsageError for options that contradict each other or that no choice covers."""
        if self.lane not in ("production", "trainer"):
            raise UsageError(f"--lane {self.lane}: is not production or trainer")
        if self.rpc not in _RPCS:
            raise UsageError(f"--rpc {self.rpc}: is not score, batch or stream")
        if self.lengths is not None and self.lengths not in bench_texts.LENGTHS:
            raise UsageError(f"--lengths {self.lengths}: is not {' or '.join(bench_texts.LENGTHS)}")
        if self.rate is not None and self.sweep is not None:
            raise UsageError("give --rate or --sweep, not both")
        if self.servers_for is not None and self.rate is not None:
            raise UsageError("--servers-for needs the saturation: leave --rate out")
        if self.plot is not None:
            bench_plot.check_plot(self.plot)

    def rates(self) -> tuple[Rate, ...]:
        """Return the offered rates of the open loops; empty for a closed loop. Raises UsageError."""
        if self.rate is not None:
            return (Rate.parse("--rate", self.rate),)
        return tuple(Rate.parse("--sweep", part) for part in self.sweep.split(",")) if self.sweep is not None else ()

    def groups(self) -> list[ScoreGroup]:
        """Return the groups to send, from a file or of random words. Raises UsageError."""
        if self.texts is not None:
            return bench_texts.read_groups(self.texts, self.distinct)
        lengths = bench_texts.Lengths(self.words, self.words, 0.0)
        if self.lengths is not None:
            lengths = bench_texts.LENGTHS[self.lengths]
        return bench_texts.built_in(lengths, self.responses, self.distinct)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The runs to measure: an open loop at each of ``rates``, or a closed loop of ``callers`` if there are none."""

    server: str
    rpc: str
    callers: int
    rates: tuple[Rate, ...]
    seconds: float
    warm_up_s: float
    timeout_s: float

    @classmethod
    def of(cls, options: BenchOptions) -> Measurement:
        """Raises UsageError for a rate that is neither a number nor a share."""
        callers = options.callers
        if options.servers_for is not None:
            callers = max(callers, SATURATING_CALLERS)
        return cls(
            options.server,
            options.rpc,
            callers,
            options.rates(),
            options.seconds,
            options.warm_up_s,
            options.timeout_s,
        )


def run(options: BenchOptions) -> int:
    """Measure, print the figures, and write the files that were asked for.

    Returns:
        The exit status: 1 if a request failed, else 0.

    Raises:
        UsageError: The options cannot be used together, or a file cannot be read or written.
        RewardloopError: The first request fails.
    """
    options.check()
    measurement = Measurement.of(options)
    payloads = bench_texts.payloads(options.rpc, options.groups(), cast(LaneName, options.lane), options.batch)
    console = bench_report.open_console()
    runs = asyncio.run(measure(measurement, payloads, console))
    if not any(r.seen.requests or r.seen.failures for r in runs):
        raise UsageError("nothing was answered within the time: measure for longer (--seconds)")
    bench_report.print_runs(console, runs)
    saturations = [r.requests_per_s for r in runs if r.rate is None and r.seen.requests]
    if options.servers_for is not None and saturations:
        plan = plan_for(options.servers_for, saturations[0])
        bench_report.print_plan(console, options.servers_for, saturations[0], plan)
    if options.json_file is not None:
        bench_report.write_json(options.json_file, runs, options.server)
    if options.plot is not None:
        bench_plot.write_plot(options.plot, runs)
        console.print(f"plot: {options.plot}", highlight=False)
    return int(any(r.seen.failures for r in runs))


async def measure(measurement: Measurement, payloads: bench_texts.Payloads, console: Console) -> list[Run]:
    """Return every run in order. A first Ctrl-C ends the running one and skips the rest; a second ends the process."""
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
                live.update(Text(_progress(measurement, seen, len(runs))))

        async with Load(measurement.server, payloads, measurement.timeout_s, stop, watch) as load:
            await load.probe()
            saturation = 0.0
            if any(rate.is_share for rate in measurement.rates) or not measurement.rates:
                callers = max(measurement.callers, SATURATING_CALLERS) if measurement.rates else measurement.callers
                seen = await load.closed(callers, measurement.warm_up_s, measurement.seconds)
                runs.append(Run(measurement.rpc, callers, None, seen))
                saturation = runs[-1].requests_per_s
            for rate in measurement.rates:
                if stop.is_set():
                    break
                offered = rate.value * saturation if rate.is_share else rate.value
                if offered == 0:
                    raise UsageError("nothing was answered while the saturation was measured: use a longer --seconds")
                seen = await load.open(offered, measurement.warm_up_s, measurement.seconds)
                runs.append(Run(measurement.rpc, None, offered, seen))
    return runs


def _progress(measurement: Measurement, seen: Seen, done: int) -> str:
    now = seen.now_s()
    shares = sum(rate.is_share for rate in measurement.rates) > 0
    total = max(1, len(measurement.rates) + shares)
    phase = (
        f"warm-up, {-now:.0f} s left"
        if now < 0
        else f"{min(now, measurement.seconds):.0f} of {measurement.seconds:.0f} s"
    )
    rate = seen.requests / now if now > 0 else 0.0
    counts = f"{len(seen.latencies_s)} answered, {rate:.1f}/s; {seen.failures.total()} failed"
    return f"run {done + 1} of {total}: {phase}; {counts}"
