"""Runs the demo: starts a deployment, lets simulated users teach it, and reports what it learned.

Everything is measured through the public RPCs. The hidden taste lives in this process alone.
"""

from __future__ import annotations

import asyncio
import resource
import shutil
import time
from dataclasses import replace

from rewardloop_client import AsyncRewardloopClient, RewardloopError
from rewardloop_demo import report
from rewardloop_demo.display import Display, console
from rewardloop_demo.learning import train_args
from rewardloop_demo.memory import Memory
from rewardloop_demo.record import DemoRecord
from rewardloop_demo.rounds import watch_rounds
from rewardloop_demo.settings import DemoSettings
from rewardloop_demo.trainer_notes import TrainerNotes
from rewardloop_demo.verdict import not_shown
from rewardloop_local.deployment import Deployment
from rewardloop_local.plan import DeploymentError, DeploymentPlan
from rewardloop_local.ports import free_port
from rewardloop_local.process_file import ProcessFile, ProcessFileError
from rewardloop_local.signals import stop_on_signals


async def run(settings: DemoSettings) -> int:
    """Returns the exit status: 0 if the demo has shown that both models learned, else 1."""
    started = time.monotonic()
    plan = _plan(settings)
    try:
        if ProcessFile(plan.data).running():
            print(f"rewardloop demo: an earlier one runs on {plan.data}: 'rewardloop down --data {plan.data}' ends it")
            return 1
    except ProcessFileError as error:
        print(f"rewardloop demo: {error}")
        return 1
    shutil.rmtree(plan.data, ignore_errors=True)
    display, memory = Display(settings), Memory()
    deployment = Deployment(plan, on_phase=display.say)
    watching = asyncio.create_task(memory.watch())
    stop = asyncio.Event()
    stop_on_signals(stop)
    with display.live:
        try:
            if not await deployment.start_unless(stop):
                display.live.console.print("rewardloop demo: stopped before it had started", style="red")
                return 1
            async with AsyncRewardloopClient(plan.listen, timeout_s=30) as client:
                demo = await watch_rounds(client, settings, TrainerNotes(plan.trainer_work), display, stop, started)
        except (DeploymentError, TimeoutError, RewardloopError) as error:
            display.live.console.print(f"rewardloop demo: {error}; logs in {plan.logs}", style="red", markup=False)
            return 1
        finally:
            await deployment.stop()
            watching.cancel()
    demo = replace(demo, peak_memory_gib=memory.peak_bytes / 2**30, seconds=time.monotonic() - started)
    demo = replace(demo, cpu_seconds=_cpu_seconds())
    return _report(demo, settings)


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has started and that have ended."""
    used = (resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _plan(settings: DemoSettings) -> DeploymentPlan:
    """A deployment on free ports, whose processes share few cores."""
    return DeploymentPlan(
        data=settings.out / "data",
        listen=f"127.0.0.1:{free_port()}",
        policy_listen=f"127.0.0.1:{free_port()}",
        metrics_port=free_port(),
        trainer_metrics_port=free_port(),
        policy_metrics_port=free_port(),
        seed=settings.seed,
        serve_args=("--intra-op-threads", "1", "--no-spin", "--engine-nice", "0"),
        policy_args=("--torch-threads", "1"),
        train_args=train_args(settings.algorithm, settings.signals_per_round, settings.seed),
    )


def _report(demo: DemoRecord, settings: DemoSettings) -> int:
    """Print the table, write the figures, and return the exit status."""
    terminal = console()
    terminal.print(report.table(demo))
    figure, results = report.write(demo, settings.out)
    terminal.print(f"Plots: {figure}   numbers: {results}")
    missing = not_shown(demo)
    for each in missing:
        terminal.print(f"[red]not shown: {each}[/red]")
    return 1 if missing else 0
