"""One demo: the deployment, its users, and what is measured from outside while it learns.

Everything is measured through the public RPCs. The hidden taste lives in this process alone.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import psutil
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from rewardloop_client import AsyncRewardloopClient, Generation, RewardloopError, ScoreGroup
from rewardloop_demo import report
from rewardloop_demo.learning import train_args
from rewardloop_demo.record import DemoRecord, RoundRecord
from rewardloop_demo.settings import DemoSettings
from rewardloop_demo.taste import Taste
from rewardloop_demo.users import SimulatedUsers, evaluate, first_texts
from rewardloop_local import corpus
from rewardloop_local.deployment import Deployment, DeploymentError, Plan, free_port

# Candidates a held-out prompt: enough that a pair of different answers is found for most.
_CANDIDATES = 3


@dataclass(frozen=True, slots=True)
class HeldOutChoice:
    """One noisy choice on a held-out prompt, which no training sees."""

    prompt: str
    chosen: str
    rejected: str


class Observer:
    """Measures each version from outside, on prompts that neither users nor training ask."""

    def __init__(self, client: AsyncRewardloopClient, taste: Taste, prompts: Sequence[str], seed: int) -> None:
        self._client = client
        self._taste = taste
        self._prompts = prompts
        self._seed = seed
        self._starter: list[Generation] = []
        self.choices: list[HeldOutChoice] = []
        self.ceiling = math.nan

    async def begin(self) -> None:
        """Keep the starter policy's answers, and noisy choices between them."""
        self._starter = await evaluate(self._client, self._prompts, k=_CANDIDATES, seed=self._seed)
        rng = random.Random(f"choices/{self._seed}")
        pairs = []
        for prompt, generation in zip(self._prompts, self._starter, strict=True):
            texts = list(dict.fromkeys(c.text for c in generation.candidates if c.text.strip()))
            if len(texts) >= 2:
                loser = self._taste.prefers(prompt, texts[0], texts[1], rng)
                self.choices.append(HeldOutChoice(prompt, texts[loser], texts[1 - loser]))
                pairs.append((prompt, texts[0], texts[1]))
        self.ceiling = self._taste.agreement_ceiling(pairs)

    async def reward_accuracy(self) -> float:
        """Share of the noisy choices with which the live reward model agrees."""
        groups = [ScoreGroup(c.prompt, [c.chosen, c.rejected]) for c in self.choices]
        right = 0
        for outcome in await self._client.score_batch(groups, timeout_s=60):
            if isinstance(outcome, RewardloopError):
                raise outcome
            right += outcome.scores[0].score > outcome.scores[1].score
        return right / len(groups)

    async def win_rate(self) -> tuple[float, float, float]:
        """Of the live policy against the starter on the held-out prompts, with its 95% interval."""
        answers = await evaluate(self._client, self._prompts, seed=self._seed + 1_000_003)
        outcome = self._taste.win_rate(self._prompts, first_texts(answers), first_texts(self._starter))
        return outcome.mean, outcome.low, outcome.high

    async def freshness(self) -> tuple[float, float]:
        """Median and greatest age of the signals new in the live reward version, at its first request here."""
        version = await self._client.get_version("reward")
        data = json.loads(version.manifest_json).get("data")
        if not data or not data["arrivals"]:
            return math.nan, math.nan
        ages = time.time() - np.asarray(data["arrivals"])
        return float(np.median(ages)), float(ages.max())


class Memory:
    """The largest sum of resident memory over this process and all it started."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    async def watch(self, every_s: float = 0.5) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # ended between the listing and the look
                    total += process.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, total)
            await asyncio.sleep(every_s)


class Display:
    """The live terminal: what happens now, how far it is, and the table so far."""

    def __init__(self, settings: DemoSettings) -> None:
        self._columns = (TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.fields[state]}"))
        self.progress = Progress(*self._columns, TimeElapsedColumn())
        self.phase = self.progress.add_task("now", total=None, state="starting")
        self.reward = self.progress.add_task("reward versions", total=settings.reward_rounds, state="")
        self.policy = self.progress.add_task("policy versions", total=settings.policy_rounds, state="")
        self.live = Live(self.progress, console=_console(), refresh_per_second=4)

    def say(self, phase: str) -> None:
        self.progress.update(self.phase, state=phase)
        if not self.live.console.is_terminal:
            self.live.console.print(phase)

    def show(self, demo: DemoRecord) -> None:
        last = demo.rounds[-1]
        self.progress.update(self.reward, completed=last.reward_swaps, state=f"{last.signals:,} signals")
        self.progress.update(self.policy, completed=last.policy_swaps, state=f"v{last.policy_version} live")
        self.live.update(Group(report.table(demo), self.progress))


def _console() -> Console:
    """The terminal; where the output goes to a file, wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


async def run(settings: DemoSettings) -> int:
    """Returns the exit status of the demo."""
    started = time.monotonic()
    if settings.out.exists():
        shutil.rmtree(settings.out / "data", ignore_errors=True)
    display = Display(settings)
    memory = Memory()
    listen, policy_listen = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    plan = Plan(
        data=settings.out / "data",
        listen=listen,
        policy_listen=policy_listen,
        metrics_port=free_port(),
        trainer_metrics_port=free_port(),
        policy_metrics_port=free_port(),
        seed=settings.seed,
        serve_args=("--intra-op-threads", "1", "--no-spin", "--engine-nice", "0"),
        policy_args=("--torch-threads", "1"),
        train_args=train_args(settings.algorithm, settings.signals_per_round, settings.seed),
    )
    deployment = Deployment(plan, on_phase=display.say)
    watching = asyncio.create_task(memory.watch())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    demo: DemoRecord | None = None
    with display.live:
        try:
            await deployment.start()
            async with AsyncRewardloopClient(listen, timeout_s=30) as client:
                demo = await _learn(client, settings, display, stop, started)
        except (DeploymentError, TimeoutError, RewardloopError) as error:
            display.live.console.print(f"[red]rewardloop demo: {error}[/red]; logs in {plan.logs}")
            return 1
        finally:
            await deployment.stop()
            watching.cancel()
    demo = replace(demo, peak_memory_gib=memory.peak_bytes / 2**30, seconds=time.monotonic() - started)
    console = _console()
    console.print(report.table(demo))
    figure, results = report.write(demo, settings.out)
    console.print(f"Plots: {figure}   numbers: {results}")
    return _verdict(demo, settings, console)


async def _learn(
    client: AsyncRewardloopClient, settings: DemoSettings, display: Display, stop: asyncio.Event, started: float
) -> DemoRecord:
    """Let users use it until enough versions were swapped in or the time is up; measure each version."""
    taste = Taste(settings.seed)
    held_out = [q.text for q in corpus.questions(settings.seed, held_out=True)][: settings.eval_prompts]
    asked = [q.text for q in corpus.questions(settings.seed)]
    observer = Observer(client, taste, held_out, settings.seed)
    display.say("asking the starter policy the held-out questions")
    await observer.begin()
    starter_accuracy = await observer.reward_accuracy()
    users = SimulatedUsers(client, taste, asked, rate=settings.rate, seed=settings.seed)
    now = RoundRecord(0, time.monotonic() - started, 0, "1", starter_accuracy, "1", 0.5, 0.5, 0.5)
    demo = DemoRecord(
        algorithm=settings.algorithm,
        seed=settings.seed,
        rounds=(now,),
        starter_accuracy=starter_accuracy,
        accuracy_ceiling=observer.ceiling,
        held_out_pairs=len(observer.choices),
        held_out_prompts=len(held_out),
        signal_kinds={},
        seconds=0.0,
    )
    display.show(demo)
    display.say("users ask, read and choose; the trainer learns")
    using = asyncio.create_task(users.run())
    try:
        while not stop.is_set() and time.monotonic() - started < settings.minutes * 60:
            await asyncio.sleep(0.3)
            if using.done():
                using.result()
            last = demo.rounds[-1]
            measured = await _measure(client, observer, last)
            if measured is not None:
                measured = replace(measured, seconds=time.monotonic() - started, signals=users.total)
                demo = replace(demo, rounds=(*demo.rounds, measured))
            display.progress.update(display.reward, state=f"{users.total:,} signals")
            if measured is not None:
                display.show(replace(demo, signal_kinds=dict(users.recorded)))
                is_enough = measured.policy_swaps >= settings.policy_rounds
                if is_enough and measured.reward_swaps >= settings.reward_rounds:
                    break
    finally:
        using.cancel()
        await asyncio.gather(using, return_exceptions=True)
    return replace(demo, signal_kinds=dict(users.recorded), failed_requests=users.refused)


async def _measure(client: AsyncRewardloopClient, observer: Observer, last: RoundRecord) -> RoundRecord | None:
    """The next record when a new version is live, else None."""
    reward = (await client.get_version("reward")).version
    policy = (await client.get_version("policy")).version
    if (reward, policy) == (last.reward_version, last.policy_version):
        return None
    fresh = replace(
        last,
        round=last.round + 1,
        win_rate=math.nan,
        win_low=math.nan,
        win_high=math.nan,
        freshness_p50_s=math.nan,
        freshness_max_s=math.nan,
    )
    if reward != last.reward_version:
        accuracy = await observer.reward_accuracy()
        middle, slowest = await observer.freshness()
        fresh = replace(
            fresh,
            reward_version=reward,
            reward_accuracy=accuracy,
            reward_swaps=last.reward_swaps + 1,
            freshness_p50_s=middle,
            freshness_max_s=slowest,
        )
    if policy != last.policy_version:
        mean, low, high = await observer.win_rate()
        fresh = replace(
            fresh,
            policy_version=policy,
            policy_swaps=last.policy_swaps + 1,
            win_rate=mean,
            win_low=low,
            win_high=high,
        )
    return fresh


def _verdict(demo: DemoRecord, settings: DemoSettings, console: Console) -> int:
    """0 when both models learned and enough versions were swapped in; else says what is missing."""
    last = demo.rounds[-1]
    wins = [r for r in demo.rounds if r.policy_swaps and not math.isnan(r.win_rate)]
    missing = []
    if last.reward_swaps < min(3, settings.reward_rounds):
        missing.append(f"only {last.reward_swaps} reward versions were swapped in")
    if last.policy_swaps < min(2, settings.policy_rounds):
        missing.append(f"only {last.policy_swaps} policy versions were swapped in")
    if not last.reward_accuracy > demo.starter_accuracy:
        missing.append("the last reward model is no better than the starter")
    if not wins or wins[-1].win_low <= 0.5:
        missing.append("the last policy is not shown to be better than the starter")
    for each in missing:
        console.print(f"[red]not shown: {each}[/red]")
    return 1 if missing else 0
