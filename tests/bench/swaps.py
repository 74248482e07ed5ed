"""What swaps cost the callers: latency, activation, errors and memory while versions change under load.

Prints p50 and p99 in steady state, during adapter swaps and during session swaps; activation (the pointer moved, to the
first reply by the new version); the memory of the server over many swaps; and whether pinned versions were honoured.

    python tests/bench/swaps.py                 # MiniLM
    python tests/bench/swaps.py --base DIRECTORY
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import arguments
import deltas
import models
import service

from rewardloop.formats.store import ModelStore
from rewardloop_cli.bench.report import percentile
from rewardloop_client import AsyncRewardloopClient, RewardloopError, ScoreResult

COLUMNS = ("phase", "swaps", "requests/s", "errors", "p50 ms", "p99 ms", "p99/steady", "activation p50 ms", "p99 ms")
_TEXTS = ("cats", "time", "rivers", "music")
_TOLERANCE = 1e-3  # of a logit: batches differ in the last digits


@dataclass
class Phase:
    """What happened to the callers. An activation: from the promotion's return to the version's first reply."""

    latencies_s: list[float] = field(default_factory=list)
    errors: list[RewardloopError] = field(default_factory=list)
    wrong: int = 0
    pins: int = 0
    waiting_for: str = ""
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    activations_s: list[float] = field(default_factory=list)
    promotions_s: list[float] = field(default_factory=list)
    seconds: float = 0.0


Work = Callable[[Phase], Awaitable[None]]


class Callers:
    """Closed-loop callers over a few texts, who check that a version's logit for a text is always the same."""

    def __init__(self, client: AsyncRewardloopClient, count: int, words: int) -> None:
        self.client = client
        self.phase = Phase()
        self.previous: str | None = None  # the version that the pinning caller asks for
        self._count = count
        self._texts = [" ".join([name] * words) for name in _TEXTS]
        self._logits: dict[tuple[str, str], float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def during(self, work: Work, phase: Phase) -> None:
        """Calls go on while ``work`` does; what they see is added to ``phase``."""
        self.phase = phase
        self.previous = None
        started = time.monotonic()
        tasks = [asyncio.create_task(self._call(i)) for i in range(self._count)]
        tasks.append(asyncio.create_task(self._pin()))
        await work(phase)
        phase.seconds += time.monotonic() - started
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _call(self, number: int) -> None:
        phase = self.phase
        while True:
            text = self._texts[number % len(self._texts)]
            number += 1
            sent = time.monotonic()
            try:
                result = await self.client.score(text, ["yes"])
            except RewardloopError as error:
                phase.errors.append(error)
                continue
            phase.latencies_s.append(time.monotonic() - sent)
            self._check(text, result)
            if result.model_version.version == phase.waiting_for:
                phase.answered.set()

    async def _pin(self) -> None:
        """Asks for the version before the active one, now and then."""
        phase = self.phase
        while True:
            await asyncio.sleep(0.1)
            if (pin := self.previous) is None:
                continue
            try:
                result = await self.client.score(self._texts[0], ["yes"], pin_version=pin)
            except RewardloopError as error:
                phase.errors.append(error)
                continue
            phase.pins += 1
            phase.wrong += result.model_version.version != pin
            self._check(self._texts[0], result)

    def _check(self, text: str, result: ScoreResult) -> None:
        logit = result.scores[0].logit
        known = self._logits.setdefault((text, result.model_version.version), logit)
        self.phase.wrong += abs(known - logit) > _TOLERANCE


def swapping(callers: Callers, versions: list[str], count: int, pause_s: float, *, pins: bool) -> Work:
    """``count`` promotions in turn through ``versions``, each after the one before has answered and a pause."""

    async def work(phase: Phase) -> None:
        for number in range(count):
            version = versions[number % len(versions)]
            phase.waiting_for, phase.answered = version, asyncio.Event()
            asked = time.monotonic()
            promotion = await callers.client.promote("reward", version, reason="bench")
            moved = time.monotonic()
            callers.previous = promotion.previous_version if pins else None
            await phase.answered.wait()
            phase.promotions_s.append(moved - asked)
            phase.activations_s.append(time.monotonic() - moved)
            await asyncio.sleep(pause_s)

    return work


def row(name: str, phase: Phase, steady_p99: float) -> list[object]:
    latencies = sorted(phase.latencies_s)
    p50, p99 = (percentile(latencies, q) * 1000 for q in (0.5, 0.99))
    swaps = sorted(phase.activations_s)
    activation = [percentile(swaps, q) * 1000 for q in (0.5, 0.99)] if swaps else ["", ""]
    figures = [p50, p99, p99 / steady_p99, *activation]
    return [name, len(swaps), len(latencies) / phase.seconds, len(phase.errors), *figures]


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


async def measure(options: argparse.Namespace, served: service.Service, adapters: list[str], graphs: list[str]) -> None:
    async with AsyncRewardloopClient(served.address, timeout_s=60, max_attempts=1) as client:
        callers = Callers(client, options.callers, options.words)

        async def steady(phase: Phase) -> None:
            await asyncio.sleep(options.seconds / options.rounds)

        def between(versions: list[str], swaps: int, pause_s: float, *, pins: bool) -> Work:
            return swapping(callers, versions, max(1, swaps // options.rounds), pause_s, pins=pins)

        usual, adapter_swaps, session_swaps = Phase(), Phase(), Phase()
        # In turn, so that what else the machine does falls on all of them.
        for _ in range(options.rounds):
            await client.promote("reward", adapters[-1])
            await callers.during(steady, Phase())  # warm-up
            await callers.during(steady, usual)
            await callers.during(between(adapters, options.swaps, options.pause, pins=True), adapter_swaps)
            await callers.during(
                between(graphs, options.session_swaps, options.session_pause, pins=False), session_swaps
            )
        phases = {"steady": usual, "adapter swaps": adapter_swaps, "session swaps": session_swaps}
        p99 = percentile(sorted(usual.latencies_s), 0.99) * 1000
        service.print_rows([COLUMNS, *(row(name, phase, p99) for name, phase in phases.items())])
        loads = sorted(adapter_swaps.promotions_s)
        p50, p99 = (percentile(loads, share) * 1000 for share in (0.5, 0.99))
        print(f"Promote of an adapter, its load included: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        print(f"pinned requests answered by their version: {adapter_swaps.pins} of {adapter_swaps.pins}")
        for phase in phases.values():
            for error in phase.errors[:3]:
                print(f"  error: {type(error).__name__}: {error}")
        print(f"replies with another logit than their version's: {sum(phase.wrong for phase in phases.values())}")
        await memory(options, served, client, adapters)


async def memory(
    options: argparse.Namespace, served: service.Service, client: AsyncRewardloopClient, adapters: list[str]
) -> None:
    """Swaps as fast as they go, each with one request; the server's resident memory at the beginning and the end."""
    sizes = []
    started = time.monotonic()
    for number in range(options.memory_swaps):
        await client.promote("reward", adapters[number % len(adapters)])
        await client.score("cats", ["yes"])
        sizes.append(resident_mib(served.pid))
    tenth = max(1, options.memory_swaps // 10)
    first, last = (sum(part) / tenth for part in (sizes[:tenth], sizes[-tenth:]))
    rate = options.memory_swaps / (time.monotonic() - started)
    print(
        f"{options.memory_swaps} adapter swaps, {rate:.0f}/s: resident {first:.1f} MiB over the first {tenth},"
        f" {last:.1f} MiB over the last {tenth}: {last / first - 1:+.2%}"
    )


def main() -> None:
    parser = arguments.parser(__doc__, seconds=20.0)
    parser.add_argument("--base", type=Path, default=None, help="Hugging Face directory (default: MiniLM)")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--words", type=int, default=24, help="in a prompt")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--session-swaps", type=int, default=10)
    parser.add_argument("--memory-swaps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5, help="turns of steady state, adapter swaps, session swaps")
    parser.add_argument("--adapters", type=int, default=20, help="versions over one graph to swap between")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between adapter swaps")
    parser.add_argument("--session-pause", type=float, default=1.0, help="seconds between session swaps")
    options = parser.parse_args()
    service.print_machine()
    with arguments.work_directory(options.work) as work, tempfile.TemporaryDirectory(prefix="rewardloop-swaps-") as own:
        base = options.base or models.encoder_base(work)
        kept = work / f"{base.name if options.base else 'minilm'}-{options.precision}"
        exported = service.export(base, kept, max_length=256, precision=options.precision)
        path = Path(own) / "models"
        shutil.copytree(kept, path)
        store = ModelStore(path)
        trunk = deltas.trunk(store, exported)
        default = deltas.head(store, trunk)
        adapters = [deltas.delta(store, trunk, default, seed).version for seed in range(1, options.adapters + 1)]
        graphs = [deltas.graph_version(store, trunk, seed).version for seed in range(1, 4)]
        with service.serving(path, *options.serve_args.split()) as served:
            asyncio.run(measure(options, served, adapters, graphs))


if __name__ == "__main__":
    main()
