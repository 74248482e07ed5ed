"""Hours of ordinary life, shortened: scoring at 70% of what is possible, signals, a swap every minute, a trainer.

Prints each minute's calls, errors, latency, and every process's memory and descriptors, and at the end what memory grew
by after the warm-up. Ends with 1 when a call failed, a signal was lost or doubled, or a score was not its version's.

    python tests/bench/soak.py --minutes 30
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import arguments
import psutil

sys.path[:0] = [str(Path(__file__).parents[1])]

VERSIONS = 5
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
_MIB = 2**20


@dataclass
class Minute:
    """What callers saw in one."""

    latencies_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    records: int = 0
    wrong: int = 0
    swaps: int = 0

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else math.nan


class Load:
    """Calls at one server. ``minute`` is replaced by whoever reads it."""

    def __init__(self, client: object, admin: object) -> None:
        from rewardloop_client import AsyncRewardloopClient

        assert isinstance(client, AsyncRewardloopClient)
        assert isinstance(admin, AsyncRewardloopClient)
        self.client, self.admin = client, admin
        self.minute = Minute()
        self.acknowledged: list[str] = []
        self._random = random.Random(0)

    async def saturation(self, seconds: float, callers: int = 16) -> float:
        """Calls a second of callers that each wait for their answer."""
        until, before = time.monotonic() + seconds, len(self.minute.latencies_s)

        async def call() -> None:
            while time.monotonic() < until:
                await self.score()

        await asyncio.gather(*(call() for _ in range(callers)))
        return (len(self.minute.latencies_s) - before) / seconds

    async def arrive(self, rate: float, work: str) -> None:
        """Poisson arrivals that do not wait, for ever."""
        due = time.monotonic()
        running: set[asyncio.Task[None]] = set()
        while True:
            due += self._random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self.score() if work == "score" else self.record())
            running.add(task)
            task.add_done_callback(running.discard)

    async def swap(self, every_s: float) -> None:
        from rewardloop_client import RewardloopError

        for number in range(1, 10**9):
            await asyncio.sleep(every_s)
            try:
                await self.admin.promote("reward", str(number % VERSIONS + 1), timeout_s=60)
                self.minute.swaps += 1
            except RewardloopError as error:
                self.minute.errors[f"promote {error.reason or error.code.name}"] += 1

    async def score(self) -> None:
        from support.reward_graphs import expected_logit

        from rewardloop_client import RewardloopError

        responses = [" ".join(self._random.choices(WORDS, k=self._random.randint(5, 40))) for _ in range(2)]
        started = time.monotonic()
        try:
            result = await self.client.score("alpha", responses)
        except RewardloopError as error:
            self.minute.errors[error.reason or error.code.name] += 1
            return
        self.minute.latencies_s.append(time.monotonic() - started)
        right = expected_logit("alpha", responses[0], float(result.model_version.version))
        self.minute.wrong += not math.isclose(result.scores[0].logit, right, rel_tol=1e-4)

    async def record(self) -> None:
        from rewardloop_client import Feedback, RewardloopError

        event = Feedback.choice(prompt="alpha", responses=["beta", "gamma"], chosen=1, rejected=0)
        try:
            await self.client.record(event)
        except RewardloopError as error:
            self.minute.errors[f"record {error.reason or error.code.name}"] += 1
            return
        self.acknowledged.append(event.event_id)
        self.minute.records += 1


def figures(processes: dict[str, psutil.Process]) -> dict[str, tuple[float, int]]:
    """Resident MiB and open descriptors of each."""
    return {name: (each.memory_info().rss / _MIB, each.num_fds()) for name, each in processes.items()}


async def soak(minutes: int, share: float, swap_s: float, records_s: float, directory: Path) -> int:
    from support.processes import ServeProcess
    from support.reward_graphs import publish_sum_version
    from support.trainers import Archiver

    from rewardloop.formats.store import ModelStore
    from rewardloop_client import AsyncRewardloopClient
    from rewardloop_local.redis_server import EmbeddedRedis

    store = ModelStore(directory / "models")
    for number in range(1, VERSIONS + 1):
        publish_sum_version(store, factor=float(number), cost=20)
    failures = 0
    with ExitStack() as stack:
        redis = EmbeddedRedis(directory / "redis")
        redis.start()
        stack.callback(redis.stop)
        server = ServeProcess(directory / "models", redis.url, directory / "serve.log", ["--log-level", "warning"])
        trainer = Archiver(directory, redis.url, "trainer", "--flush-age-s", "2", "--flush-rows", "5000")
        for part in (server, trainer):
            part.start()
            stack.callback(part.kill)
        server.wait_until_serving()
        trainer.wait_for_log("leading")
        assert server.process is not None
        assert trainer.process is not None
        assert redis.pid is not None
        pids = {"server": server.process.pid, "trainer": trainer.process.pid, "redis": redis.pid}
        processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        async with AsyncExitStack() as clients:
            client = await clients.enter_async_context(AsyncRewardloopClient(server.address, max_attempts=1))
            admin = await clients.enter_async_context(AsyncRewardloopClient(server.address))
            load = Load(client, admin)
            await admin.promote("reward", "1")
            await load.saturation(5.0)
            saturated = await load.saturation(10.0)
            rate = share * saturated
            print(
                f"saturation {saturated:.0f} groups/s; {share:.0%} of it: {rate:.0f}/s, and {records_s:.0f} signals/s"
            )
            load.minute = Minute()
            tasks = [
                asyncio.create_task(load.arrive(rate, "score")),
                asyncio.create_task(load.arrive(records_s, "record")),
                asyncio.create_task(load.swap(swap_s)),
            ]
            columns = [f"{name} MiB / fds" for name in processes]
            print(
                "| minute | groups/s | signals/s | errors | wrong | swaps | p50 ms | p99 ms |", " | ".join(columns), "|"
            )
            print("| --- " * (8 + len(columns)) + "|")
            history: list[dict[str, tuple[float, int]]] = []
            for number in range(1, minutes + 1):
                await asyncio.sleep(60)
                minute, load.minute = load.minute, Minute()
                now = figures(processes)
                history.append(now)
                failures += sum(minute.errors.values()) + minute.wrong
                cells = [f"{mib:.1f} / {fds}" for mib, fds in now.values()]
                print(
                    f"| {number} | {len(minute.latencies_s) / 60:.0f} | {minute.records / 60:.0f} "
                    f"| {dict(minute.errors) or 0} | {minute.wrong} | {minute.swaps} "
                    f"| {minute.percentile(0.5):.1f} | {minute.percentile(0.99):.1f} |",
                    " | ".join(cells),
                    "|",
                    flush=True,
                )
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(1)
        lost, doubled = await asyncio.to_thread(_count, trainer, redis.url, directory / "ledger", load.acknowledged)
    print(f"signals acknowledged {len(load.acknowledged)}, lost {lost}, counted twice {doubled}")
    warm = max(1, min(len(history) // 5, 5)) - 1
    for name in processes:
        (first, _), (last, fds) = history[warm][name], history[-1][name]
        growth = f"{first:.1f} MiB after minute {warm + 1}, {last:.1f} MiB at the end ({last - first:+.1f})"
        print(f"{name}: {growth}, {fds} fds")
    return 1 if failures or lost or doubled else 0


def _count(trainer: object, redis_url: str, archive: Path, acknowledged: list[str]) -> tuple[int, int]:
    """Lost and doubled signals, once the trainer has archived all."""
    import redis as redis_py

    from rewardloop.formats import keys
    from rewardloop_trainer.archive.ledger import Ledger

    with redis_py.Redis.from_url(redis_url) as client:
        deadline = time.monotonic() + 60
        while client.xlen(keys.FEEDBACK_STREAM) and time.monotonic() < deadline:
            time.sleep(0.2)
    counted = Counter(Ledger(archive, writable=False).event_ids())
    return len(set(acknowledged) - set(counted)), sum(times > 1 for times in counted.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.7, help="of saturation (default 0.7)")
    parser.add_argument("--swap-every", type=float, default=60.0, help="seconds (default 60)")
    parser.add_argument("--signals", type=float, default=20.0, help="a second (default 20)")
    parser.add_argument("--work", type=Path, default=None, help="where it works (default: a temporary directory)")
    given = parser.parse_args()
    with arguments.work_directory(given.work) as directory:
        return asyncio.run(soak(given.minutes, given.share, given.swap_every, given.signals, directory))


if __name__ == "__main__":
    raise SystemExit(main())
