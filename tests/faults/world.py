"""The world that faults happen to: Redis behind a proxy, a server without and one with a spool, a trainer, callers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import redis
from faults.callers import Callers
from support.processes import ServeProcess
from support.reward_graphs import publish_sum_version
from support.small_disk import small_disk
from support.tcp_proxy import TcpProxy
from support.trainers import Archiver

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.ledger import Ledger


class World:
    """``plain`` refuses signals while Redis is away, ``spooling`` keeps them. ``front``: a proxy before ``plain``."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.store = ModelStore(directory / "models")
        for factor in (1.0, 2.0):
            publish_sum_version(self.store, factor=factor)
        self.redis = EmbeddedRedis(directory / "redis")
        self.redis.start()
        stack.callback(self.redis.stop)
        self.proxy = stack.enter_context(TcpProxy(self.redis.port))
        self.disk = directory / "disk"
        try:
            stack.enter_context(small_disk(self.disk, kib=8192))
            self.has_small_disk = True
        except BaseException as error:  # pytest's skip: no root, or no tmpfs here
            if isinstance(error, KeyboardInterrupt):
                raise
            self.disk.mkdir(exist_ok=True)
            self.has_small_disk = False
        url = f"redis://127.0.0.1:{self.proxy.port}/0"
        models, spool = directory / "models", self.disk / "spool"
        self.plain = ServeProcess(models, url, directory / "plain.log")
        self.spooling = ServeProcess(
            models, url, directory / "spooling.log", ["--spool", str(spool), "--spool-mib", "1"]
        )
        self.servers = (self.plain, self.spooling)
        self.archive = self.disk / "ledger"
        self.trainer = Archiver(directory, url, "trainer", "--archive", str(self.archive))
        self.front = stack.enter_context(TcpProxy(self.plain.port))
        self.callers = Callers([f"127.0.0.1:{self.front.port}", self.spooling.address])
        for server in self.servers:
            server.start()
            stack.callback(server.kill)
        stack.callback(self.trainer.kill_all)
        self.trainer.start()
        for server in self.servers:
            server.wait_until_serving()
        with self.admin() as admin:
            admin.promote("reward", "1")
        until(lambda: self.active_at(self.spooling) == "1")
        self.callers.start()
        stack.callback(self.callers.stop)

    def admin(self, server: ServeProcess | None = None) -> RewardloopClient:
        return RewardloopClient((server or self.plain).address, timeout_s=30)

    def active_at(self, server: ServeProcess) -> str:
        with self.admin(server) as client:
            return client.get_version("reward").version

    def client(self) -> redis.Redis:
        """To Redis itself, past the proxy."""
        return redis.Redis(port=self.redis.port, socket_timeout=10)

    def until_well(self, patience_s: float = 90.0) -> None:
        """Until every process runs and both kinds of calls are answered by both servers again."""
        deadline = time.monotonic() + patience_s
        if self.trainer.process is not None and self.trainer.process.poll() is not None:
            self.trainer.start()  # as its supervisor does
        for server in self.servers:
            server.wait_until_serving(patience_s=patience_s)
        for server in self.servers:
            with self.admin(server) as client:
                while not client.health("rewardloop.v1.FeedbackService"):
                    assert time.monotonic() < deadline, "feedback is not taken again"
                    time.sleep(0.05)
        scores, records = self.callers.counts()
        until(lambda: self.callers.counts()[0] > scores + 4 and self.callers.counts()[1] > records + 4)

    def counted(self) -> tuple[list[str], Counter[str]]:
        """What is acknowledged, and how often each signal is in the ledger, or else in the stream."""
        self.callers.pause_recording()
        try:
            until(lambda: not list((self.disk / "spool").glob("*.spool")), why="the spool is not drained")
            waiting = self._stream()  # before the ledger: what is archived meanwhile is seen twice and not never
            archived = Counter(Ledger(self.archive, writable=False).event_ids())
            return list(self.callers.acknowledged), archived | waiting
        finally:
            self.callers.resume_recording()

    def is_archived(self) -> bool:
        """Whether the ledger has all that is in the stream."""
        return not set(self._stream()) - set(Ledger(self.archive, writable=False).event_ids())

    def _stream(self) -> Counter[str]:
        with self.client() as client:
            return Counter(fields[keys.ID_FIELD.encode()].decode() for _, fields in client.xrange(keys.FEEDBACK_STREAM))


@contextmanager
def world(directory: Path) -> Iterator[World]:
    """A world in the directory. Raises AssertionError if a process of it outlives it."""
    with ExitStack() as stack:
        yield World(directory, stack)
    assert processes_of(directory) == []


def processes_of(directory: Path) -> list[str]:
    """The processes whose arguments name the directory, each with its pid."""
    running = ((each.pid, " ".join(each.info["cmdline"] or ())) for each in psutil.process_iter(["cmdline"]))
    return [f"{pid} {command}" for pid, command in running if str(directory) in command]


def until(holds: Callable[[], bool], patience_s: float = 90.0, why: str = "it did not come about") -> None:
    """Wait until it holds; a Redis that is not there yet does not count."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            if holds():
                return
        except redis.RedisError:
            pass  # away: the deadline decides
        assert time.monotonic() < deadline, why
        time.sleep(0.05)
