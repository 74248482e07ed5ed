"""What it costs to acknowledge a signal only once a replica has it.

    python tests/bench/replication.py [--signals 2000] [--directory /dev/shm]

One master and one replica on this machine, both with ``appendfsync always``. Signals are recorded one after another,
and by 64 callers at once, with and without the wait. If both sync to one disk, they wait for each other there; in
memory the wait alone is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from support.redis_processes import sentinels
from support.signals import choice

from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.replication import ReplicaRules, Replication
from rewardloop_server.feedback.stream import FeedbackStream

CALLERS = 64


async def measure(url: str, replicas: int, signals: int, first: int) -> tuple[float, float, float]:
    """Return the median and the p99 of a lone caller's signal in milliseconds, and signals a second of many callers."""
    redis = connect_redis(url)
    stream = FeedbackStream(redis, 60, replication=Replication(redis, "sentinel", ReplicaRules(replicas)))
    await stream.append([choice(first)])
    taken = []
    for i in range(first + 1, first + signals):
        started = time.perf_counter()
        await stream.append([choice(i)])
        taken.append(1000 * (time.perf_counter() - started))

    async def record(caller: int) -> None:
        for i in range(signals // 8):
            await stream.append([choice(first + (caller + 2) * signals + i)])

    started = time.perf_counter()
    await asyncio.gather(*map(record, range(CALLERS)))
    rate = CALLERS * (signals // 8) / (time.perf_counter() - started)
    await redis.aclose()
    return statistics.median(taken), statistics.quantiles(taken, n=100)[98], rate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--signals", type=int, default=2000, help="signals of the lone caller; an eighth of each other")
    parser.add_argument("--directory", type=Path, help="where both keep their files; by default a temporary directory")
    given = parser.parse_args()
    signals = given.signals
    with tempfile.TemporaryDirectory(dir=given.directory) as directory, sentinels(Path(directory)) as group:
        print(f"{'replicas':>8} {'median ms':>10} {'p99 ms':>8} {'signals/s, ' + str(CALLERS) + ' callers':>24}")
        for turn, replicas in enumerate((0, 1, 0, 1)):
            median, tail, rate = asyncio.run(measure(group.url, replicas, signals, turn * 10_000_000))
            print(f"{replicas:>8} {median:>10.2f} {tail:>8.2f} {rate:>24,.0f}")


if __name__ == "__main__":
    main()
