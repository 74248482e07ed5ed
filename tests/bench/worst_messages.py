"""How much of a server's memory do many of the worst legal messages take at once, with credentials and without?

Each load is 48 calls at once, on four connections, of messages as large as the server takes. The bound is 1.5 times the
steady memory and twice the bytes in flight, as received and as parsed.

    python tests/bench/worst_messages.py
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import arguments
import grpc
import psutil
import service
from heaviest import LOADS, Load

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient

CALLS = 48
CONNECTIONS = 4
MIB = 2**20
TOKEN = "a-token-that-is-long-enough-for-a-bench"


def main() -> int:
    parser = arguments.parser(__doc__, seconds=20.0)
    parser.add_argument("--only", default="", help="loads whose names hold this")
    options = parser.parse_args()
    service.print_machine()
    with arguments.work_directory(options.work) as work:
        callers = work / "callers.toml"
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        roles = '["score", "feedback", "generate", "admin"]'
        callers.write_text(f'[[token]]\ncaller = "bench"\nsha256 = "{digest}"\nroles = {roles}\n')
        publish_sum_version(ModelStore(work / "store"), max_length=512)
        over = 0
        rows: list[list[object]] = [["load", "in flight MiB", "steady MiB", "peak MiB", "bound MiB", "ended with"]]
        for load in LOADS:
            if options.only not in load.name:
                continue
            for row, is_over in _measured(work / "store", callers, load, options.seconds, options.serve_args):
                rows.append(row)
                over += is_over
                print(*row, sep=" | ", flush=True)
        service.print_rows(rows)
    return int(over > 0)


def _measured(store: Path, callers: Path, load: Load, seconds: float, more: str) -> Iterator[tuple[list[object], bool]]:
    """Put the load on a fresh server, first without a token. Yields the rows, and whether they exceed the bound."""
    data = load.message().SerializeToString()
    with service.serving(store, "--callers", str(callers), *more.split(), token=TOKEN) as served:
        process = psutil.Process(served.pid)
        with RewardloopClient(served.address, token=TOKEN) as client:
            for _ in range(200):
                client.score("alpha", ["beta", "gamma"])
        steady = process.memory_info().rss
        bound = 1.5 * steady + 2 * CALLS * len(data)
        for token in ("", TOKEN):
            peak, codes = _peak(process, lambda token=token: _send(served.address, load, data, token, seconds))  # type: ignore[misc]
            shown = ", ".join(f"{code} {count}" for code, count in codes.most_common())
            sizes = [round(size / MIB) for size in (CALLS * len(data), steady, peak, bound)]
            yield [load.name if token else f"{load.name}, no token", *sizes, shown], peak > bound


def _peak(process: psutil.Process, work: Callable[[], Counter[str]]) -> tuple[int, Counter[str]]:
    peak, over = 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        return_value = work()
    finally:
        over.set()
        looking.join()
    return peak, return_value


def _send(address: str, load: Load, data: bytes, token: str, seconds: float) -> Counter[str]:
    metadata = (("authorization", f"Bearer {token}"),) if token else None
    channels = [
        grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)])
        for _ in range(CONNECTIONS)
    ]
    codes: Counter[str] = Counter()
    started = threading.Barrier(CALLS)

    def call(number: int) -> None:
        channel = channels[number % CONNECTIONS]
        started.wait()
        try:
            load.send(channel, data, seconds, metadata)
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1  # type: ignore[attr-defined]

    with ThreadPoolExecutor(CALLS) as pool:
        list(pool.map(call, range(CALLS)))
    time.sleep(0.2)
    for channel in channels:
        channel.close()
    return codes


if __name__ == "__main__":
    raise SystemExit(main())
