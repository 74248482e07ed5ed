"""bench: a closed loop of callers over Score, and what they saw.

Closed loop: a caller sends its next request when the last was answered, so a slow server is asked less often
and the tail looks better than under traffic that does not wait.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from rich.console import Console
from rich.table import Table

from rewardloop_cli.failures import UsageError
from rewardloop_client import AsyncRewardloopClient, RewardloopError
from rewardloop_client._types import LaneName

_WORDS = ("please", "reset", "the", "account", "and", "tell", "me", "how", "long", "it", "takes", "since", "monday")


@dataclass(slots=True)
class Seen:
    """Latencies of answered requests in seconds; failures by reason; versions that answered."""

    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0


def run(*, server: str, callers: int, seconds: float, responses: int, words: int, lane: str) -> int:
    """0; 1 when a request failed. Raises UsageError, and RewardloopError when the first request fails."""
    if lane not in ("production", "trainer"):
        raise UsageError(f"--lane {lane}: is not production or trainer")
    seen = asyncio.run(_measure(server, callers, seconds, responses, words, cast(LaneName, lane)))
    _print(seen, callers, responses)
    return int(bool(seen.failures))


async def _measure(server: str, callers: int, seconds: float, responses: int, words: int, lane: LaneName) -> Seen:
    seen = Seen()
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(_WORDS, k=words))

    async with AsyncRewardloopClient(server, max_attempts=1, lane=lane) as client:
        await client.score(text(), [text()])  # connects, and raises if nobody is there
        end = time.monotonic() + seconds

        async def call() -> None:
            while time.monotonic() < end:
                prompt, group = text(), [text() for _ in range(responses)]
                started = time.perf_counter()
                try:
                    result = await client.score(prompt, group)
                except RewardloopError as error:
                    seen.failures[error.reason or type(error).__name__] += 1
                    await asyncio.sleep(error.retry_after_s or 0.01)
                    continue
                seen.latencies_s.append(time.perf_counter() - started)
                seen.versions[result.model_version.version] += 1

        started = time.monotonic()
        await asyncio.gather(*(call() for _ in range(callers)))
        seen.wall_s = time.monotonic() - started
    return seen


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed; NaN of none. ``values`` sorted."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def _print(seen: Seen, callers: int, responses: int) -> None:
    latencies = sorted(seen.latencies_s)
    table = Table("callers", "requests", "failed", "req/s", "resp/s", "p50", "p90", "p99", "max")
    rate = len(latencies) / seen.wall_s
    table.add_row(
        str(callers),
        str(len(latencies)),
        str(seen.failures.total()),
        f"{rate:.1f}",
        f"{rate * responses:.1f}",
        *(f"{1000 * percentile(latencies, share):.2f}" for share in (0.5, 0.9, 0.99, 1.0)),
    )
    console = Console(markup=False)
    console.print(table)
    console.print("latencies in milliseconds; closed loop")
    for title, counts in (("reward versions", seen.versions), ("failures", seen.failures)):
        if counts:
            console.print(f"{title}: " + ", ".join(f"{name} x{n}" for name, n in counts.most_common()), highlight=False)
