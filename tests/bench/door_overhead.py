"""What the door costs a request: CPU time of a server whose method answers at once, over real gRPC.

    python tests/bench/door_overhead.py

Each kind of server is a process of its own; rounds take turns, and the least of each kind counts, so that the figures
hold on a busy machine.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
import psutil
from support.certificates import Authority
from support.doors import METHODS, CallersFile, opened

CALLS, ROUNDS, IN_FLIGHT = 2000, 8, 8
KINDS = {"no callers' file": (), "tokens": ("callers",), "tokens and quotas": ("callers", "quotas"), "TLS": ("tls",)}


async def serve(kind: str, directory: Path) -> None:
    """Until standard input ends; the port is the first line of output."""
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    settings: dict[str, Any] = {}
    if "tls" in KINDS[kind]:
        settings |= {"tls_cert": directory / "server.pem", "tls_key": directory / "server.key"}
    if "callers" in KINDS[kind]:
        settings["callers"] = directory / ("bounded" if "quotas" in KINDS[kind] else "free") / "callers.toml"
    async with opened(reload_s=1.0, **settings) as door:
        print(door.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def ask(port: int, token: str | None, authority: bytes | None) -> None:
    """`CALLS` calls, `IN_FLIGHT` at once."""
    address = f"127.0.0.1:{port}"
    if authority is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority))
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    async with channel:
        method: Any = channel.unary_unary(METHODS[0])

        async def some() -> None:
            for _ in range(CALLS // IN_FLIGHT):
                await method(b"", metadata=metadata)

        await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))


def measure(directory: Path) -> dict[str, float]:
    """Microseconds of the server's CPU time a call, by kind."""
    authority = Authority(directory)
    authority.issue("server", names=("127.0.0.1",))
    tokens = {}
    for name in ("free", "bounded"):
        (directory / name).mkdir()
        callers = CallersFile(directory / name)
        tokens[name] = callers.add("bench", "score")
        for number in range(100):
            callers.add(f"other-{number}", "score")
        if name == "bounded":
            callers.bound("bench", requests_per_s=1e9, tokens_per_s=1e12, bytes_per_s=1e12, concurrent=10_000)
    servers = {}
    for kind in KINDS:
        argv = [sys.executable, __file__, kind, str(directory)]
        servers[kind] = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    least = dict.fromkeys(KINDS, float("inf"))
    try:
        ports = {kind: int(process.stdout.readline()) for kind, process in servers.items() if process.stdout}
        for _ in range(ROUNDS):
            for kind, parts in KINDS.items():
                token = tokens["bounded" if "quotas" in parts else "free"] if "callers" in parts else None
                used = psutil.Process(servers[kind].pid)
                before = sum(used.cpu_times()[:2])
                asyncio.run(ask(ports[kind], token, authority.path.read_bytes() if "tls" in parts else None))
                least[kind] = min(least[kind], (sum(used.cpu_times()[:2]) - before) / CALLS * 1e6)
    finally:
        for process in servers.values():
            process.kill()
    return least


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        least = measure(Path(directory))
    base = least["no callers' file"]
    for kind, microseconds in least.items():
        print(f"{kind:20} {microseconds:6.0f} microseconds of CPU a call ({microseconds - base:+.0f})")
    print(f"{CALLS} calls, least of {ROUNDS} rounds, {os.cpu_count()} cores, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
    else:
        main()
