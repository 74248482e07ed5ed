"""Everything on one machine: Redis, the serving process, the policy worker and the trainer, under one supervisor."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopError
from rewardloop_local import corpus
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_local.security import Security
from rewardloop_local.supervise import Process, Supervisor

log = structlog.get_logger()

# A second deployment on the same data would publish and append beside the first.
_LOCK_FILE = "up.lock"
_ANCHORS = 256
# Several processes share the cores: a thread that spins while it waits takes time from the others.
_ENV = {"OMP_WAIT_POLICY": "PASSIVE"}


class DeploymentError(Exception):
    """The deployment cannot start; the text says why and where the log is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. Empty ``reward_base``: the starter model is trained. Empty ``redis_url``: an embedded Redis."""

    data: Path
    listen: str = "127.0.0.1:50051"
    policy_listen: str = "127.0.0.1:50052"
    metrics_port: int = 9464
    trainer_metrics_port: int = 9465
    policy_metrics_port: int = 9466
    redis_url: str = ""
    reward_base: str = ""
    policy_base: str = ""
    seed: int = 0
    export_args: Sequence[str] = field(default_factory=tuple)
    serve_args: Sequence[str] = field(default_factory=tuple)
    policy_args: Sequence[str] = field(default_factory=tuple)
    train_args: Sequence[str] = field(default_factory=tuple)
    security: Security = field(default_factory=Security)

    @property
    def store(self) -> Path:
        return self.data / "models"

    @property
    def anchors(self) -> Path:
        """What the trainer calibrates every version on; where there is none it chooses from the first signals."""
        return self.data / "trainer" / "anchors.jsonl"

    @property
    def logs(self) -> Path:
        return self.data / "logs"


class Deployment:
    """Starts the parts in order and waits until each is ready; stops them in the reverse order."""

    def __init__(self, plan: Plan, on_phase: Callable[[str], None]) -> None:
        self.plan = plan
        self.supervisor = Supervisor()
        self._on_phase = on_phase
        self._redis: EmbeddedRedis | None = None
        self._redis_watch: asyncio.Task[None] | None = None
        self._lock: int | None = None

    async def start(self) -> None:
        """Raises DeploymentError; whatever was started is then stopped by `stop`."""
        plan = self.plan
        self._take_lock()
        redis_url = plan.redis_url or await self._start_redis()
        await self._first_versions()
        has_policy = bool(ModelStore(plan.store).versions("policy"))
        shared = ["--store", str(plan.store), "--redis-url", redis_url]
        door = plan.security.door_args()
        serve = [*shared, "--listen", plan.listen, "--metrics-port", str(plan.metrics_port), *door]
        # Beside a trainer and a policy worker that are as eager, scoring must not step back behind them.
        serve += ["--engine-nice", "3", *plan.serve_args]
        if has_policy:
            worker = [*shared, "--listen", plan.policy_listen, "--metrics-port", str(plan.policy_metrics_port)]
            self._add("policy-worker", "rewardloop_policy.app", [*worker, *door, *plan.policy_args])
            serve += ["--policy-address", plan.policy_listen, *plan.security.access_args("policy-")]
        self._add("serve", "rewardloop_server.app", serve)
        services = ["rewardloop.v1.RewardService", "rewardloop.v1.FeedbackService"]
        await self._until_serving([*services, "rewardloop.v1.PolicyService"] if has_policy else services)
        train = [*shared, "--server", plan.listen, "--metrics-port", str(plan.trainer_metrics_port)]
        train += ["--work-dir", str(plan.data / "trainer"), "--archive", str(plan.data / "ledger")]
        self._add("train", "rewardloop_trainer.app", [*train, *plan.security.access_args(), *plan.train_args], nice=5)

    async def stop(self) -> None:
        self._on_phase("stopping")
        await self.supervisor.stop()
        if self._redis_watch is not None:
            self._redis_watch.cancel()
        if self._redis is not None:
            await asyncio.to_thread(self._redis.stop)
        if self._lock is not None:
            os.close(self._lock)

    def pids(self) -> list[int]:
        """Process ids of everything that runs."""
        found = [process.pid for process in self.supervisor.processes if process.is_running]
        return [pid for pid in [*found, self._redis.pid if self._redis else None] if pid is not None]

    def _add(self, name: str, module: str, args: Sequence[str], nice: int = 0) -> None:
        self._on_phase(f"starting {name}")
        argv = [sys.executable, "-m", module, *args]
        self.supervisor.add(Process(name, argv, self.plan.logs / f"{name}.log", _ENV, nice=nice))

    def _take_lock(self) -> None:
        self.plan.data.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.plan.data / _LOCK_FILE, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DeploymentError(f"another rewardloop runs on {self.plan.data}") from error

    async def _start_redis(self) -> str:
        self._on_phase("starting redis-server")
        self._redis = EmbeddedRedis(self.plan.data / "redis")
        await asyncio.to_thread(self._redis.start)
        self._redis_watch = asyncio.create_task(self._watch_redis(self._redis))
        return self._redis.url

    async def _watch_redis(self, redis: EmbeddedRedis) -> None:
        while True:
            await asyncio.sleep(0.2)
            if not redis.is_running:
                log.warning("redis-server died, restarting")
                await asyncio.to_thread(redis.start)

    async def _first_versions(self) -> None:
        """Put a first version of each model into an empty store."""
        plan, store = self.plan, ModelStore(self.plan.store)
        reward_base, policy_base = plan.reward_base, plan.policy_base
        if store.versions("reward"):
            return
        if not reward_base:
            self._on_phase("training the starter models (about a minute)")
            starter = plan.data / "starter"
            await self._run("starter", "rewardloop_local.starter", ["--out", str(starter), "--seed", str(plan.seed)])
            reward_base = str(starter / "reward-base")
            policy_base = policy_base or str(starter / "policy-base")
            self._write_anchors()
        for model, base in (("reward", reward_base), ("policy", policy_base)):
            if base:
                self._on_phase(f"exporting {model} version 1")
                args = ["--model", model, "--base", base, "--store", str(plan.store)]
                if model == "reward":
                    args += plan.export_args
                    args += ("--anchors", str(plan.anchors)) if plan.anchors.exists() else ()
                await self._run(f"export-{model}", "rewardloop_trainer.commands.export", args)

    def _write_anchors(self) -> None:
        """Fix the scale of scores for the starter and all that come after it, on answers of the corpus."""
        self.plan.anchors.parent.mkdir(parents=True, exist_ok=True)
        with self.plan.anchors.open("w") as file:
            for prompt, response in corpus.sft_examples(_ANCHORS, self.plan.seed):
                turns = [{"role": "user", "content": prompt}]
                file.write(json.dumps({"prompt": turns, "response": response}) + "\n")

    async def _run(self, name: str, module: str, args: Sequence[str]) -> None:
        process = Process(name, [sys.executable, "-m", module, *args], self.plan.logs / f"{name}.log", _ENV)
        process.start()
        try:
            status = await process.wait()
        finally:
            await process.stop()
        if status != 0:
            raise DeploymentError(f"{name} failed (status {status}), {process.log_path}:\n{process.tail()}")

    async def _until_serving(self, services: Sequence[str], patience_s: float = 90.0) -> None:
        self._on_phase("waiting until the services are warm")
        waiting = list(services)
        async with self.plan.security.client(self.plan.listen, 2.0) as client, asyncio.timeout(patience_s):
            while waiting:
                for process in self.supervisor.processes:
                    if process.restarts >= 3:
                        raise DeploymentError(f"{process.name} keeps dying, {process.log_path}:\n{process.tail()}")
                try:
                    if await client.health(waiting[0]):
                        waiting.pop(0)
                        continue
                except RewardloopError as error:
                    log.debug("not serving yet", service=waiting[0], error=str(error))
                await asyncio.sleep(0.1)


def free_port() -> int:
    """A TCP port on loopback that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
