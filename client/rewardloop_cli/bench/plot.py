"""Draws the plot of bench: latency by percentile and, for several rates, latency against the offered rate."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rewardloop_cli.bench.report import Run, percentile
from rewardloop_cli.failures import UsageError

_SHARES = (0.5, 0.9, 0.99)


def check_plot(path: Path) -> None:
    """Raise UsageError if no plot could be drawn, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'rewardloop[local]'")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no directory {path.parent}")


def write_plot(path: Path, runs: Sequence[Run]) -> None:
    """Draw the runs in which anything was answered. Raises UsageError if the file cannot be written."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    answered = [run for run in runs if run.seen.latencies_s]
    swept = sorted((run for run in answered if run.rate is not None), key=lambda run: run.rate or 0.0)
    panels = 2 if len(swept) > 1 else 1
    figure, axes = pyplot.subplots(1, panels, figsize=(6.4 * panels, 4.2), squeeze=False, layout="constrained")
    by_share = axes[0][0]
    for run in answered:
        latencies = sorted(run.seen.latencies_s)
        # The axis is 1/(1-share) on a log scale, so that 90%, 99% and 99.9% are equally far apart.
        shares = [1 - 10 ** (-step / 50) for step in range(200) if 10 ** (step / 50) <= len(latencies)]
        name = f"{run.callers} callers" if run.rate is None else f"{run.rate:.1f}/s"
        by_share.plot([1 / (1 - s) for s in shares], [1000 * percentile(latencies, s) for s in shares], label=name)
    ticks = {1: "0", 2: "50%", 10: "90%", 100: "99%", 1000: "99.9%"}
    by_share.set(xscale="log", yscale="log", xlabel="share of requests", ylabel="latency within (ms)")
    by_share.set_xticks(list(ticks), list(ticks.values()))
    by_share.minorticks_off()
    if answered:
        by_share.legend()
    if panels == 2:
        against_rate = axes[0][1]
        for share in _SHARES:
            latencies_ms = [run.milliseconds(share) for run in swept]
            against_rate.plot([run.rate for run in swept], latencies_ms, marker="o", label=f"p{100 * share:.0f}")
        against_rate.set(yscale="log", xlabel="offered requests/s", ylabel="latency (ms)")
        against_rate.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot {path}: {error}") from error
    finally:
        pyplot.close(figure)
