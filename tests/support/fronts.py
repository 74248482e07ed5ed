"""``rewardloop serve --front-processes N`` as real processes, and connections to one of its fronts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from rewardloop.v1 import access_pb2, access_pb2_grpc
from support.processes import ServeProcess

# A connection of its own for each channel, because the system deals connections out to the fronts.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@dataclass
class FrontedService(ServeProcess):
    """A service with several processes, whose log is JSON."""

    fronts: int = 2

    def argv(self) -> list[str]:
        return [*super().argv(), "--front-processes", str(self.fronts), "--log-format", "json"]

    def events(self) -> list[dict[str, object]]:
        """What the log says, without the lines that are no events."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]

    def pid(self, process: str) -> int:
        """The latest process of this name."""
        started = [each for each in self.events() if each["event"] == "process started" and each["process"] == process]
        return int(str(started[-1]["pid"]))

    def kill_one(self, process: str) -> None:
        """As ``kill -9`` does."""
        os.kill(self.pid(process), signal.SIGKILL)

    @asynccontextmanager
    async def channel_to(self, front: str) -> AsyncIterator[grpc.aio.Channel]:
        """A connection to this front, found by opening others until one leads there."""
        for _ in range(40):
            before = self._asked(front)
            async with grpc.aio.insecure_channel(self.address, options=_OWN_CONNECTION) as channel:
                await access_pb2_grpc.AccessServiceStub(channel).GetIdentity(access_pb2.GetIdentityRequest())
                if self._asked(front) > before:
                    yield channel
                    return
        raise AssertionError(f"no connection led to {front}")

    def _asked(self, front: str) -> float:
        return self.figure("rewardloop_requests_total", method="AccessService/GetIdentity", code="OK", process=front)


@contextmanager
def serving_by_fronts(
    store: Path, redis_url: str, log_path: Path, *args: str, fronts: int = 2
) -> Iterator[FrontedService]:
    """A running, warm service; ended with the block."""
    service = FrontedService(store, redis_url, log_path, args, fronts=fronts)
    service.start()
    try:
        service.wait_until_serving()
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()


def until(condition: object, patience_s: float = 30.0) -> None:
    """Wait until the function that is given returns true."""
    assert callable(condition)
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come so far in time"
        time.sleep(0.02)


async def until_true(condition: object, patience_s: float = 30.0) -> None:
    """Wait for it while the event loop does other work."""
    await asyncio.to_thread(until, condition, patience_s)
