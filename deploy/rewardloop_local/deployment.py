"""Runs everything on one machine under one supervisor: Redis, serving process, policy worker and trainer."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import structlog

from rewardloop.formats.mixing.mixture_file import BadMixtures, read_mixtures
from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.store import StoreError
from rewardloop_client import RewardloopError
from rewardloop_local.filled_store import refuse_ignored, served_lines
from rewardloop_local.first_versions import publish_first_versions
from rewardloop_local.log_bound import bound_log
from rewardloop_local.plan import UP_LOCK, DeploymentError, DeploymentPlan
from rewardloop_local.ports import port_problems
from rewardloop_local.process_file import SUPERVISOR, ProcessFile, ProcessFileError
from rewardloop_local.redis_server import EmbeddedRedis, RedisServerError
from rewardloop_local.redis_server.door import open_door
from rewardloop_local.start_record import report
from rewardloop_local.supervise import Process, Supervisor
from rewardloop_reward.unusable_base import UnusableBase
from rewardloop_trainer.data.base_path import check_base_path

log = structlog.get_logger()

# The processes share the cores, and a thread that spins while it waits takes time from the others.
_ENV = {"OMP_WAIT_POLICY": "PASSIVE"}
# A process that died so often while the deployment starts will not come up.
_MOST_RESTARTS = 3
_SAY_EVERY_S = 10.0


class Deployment:
    """Starts the parts in order and waits until each is ready. Stops them in the reverse order."""

    def __init__(self, plan: DeploymentPlan, on_phase: Callable[[str], None]) -> None:
        self.plan = plan
        self.supervisor = Supervisor()
        self._on_phase = on_phase
        self._processes = ProcessFile(plan.data)
        self._redis: EmbeddedRedis | None = None
        self._redis_start: asyncio.Future[None] | None = None
        self._redis_watch: asyncio.Task[None] | None = None
        self._lock: int | None = None
        self._env: Mapping[str, str] = _ENV

    async def start(self) -> None:
        """Return once the services are warm and the trainer runs.

        Raises:
            DeploymentError: A part cannot start. Call `stop` to end the parts that did start.
            TimeoutError: The services are not warm in time.
        """
        plan = self.plan
        self._take_data()
        try:
            for base in plan.bases_to_export():
                check_base_path(base)
            if plan.mixtures is not None:
                read_mixtures(plan.mixtures, {REWARD, *plan.reward_models})
        except (UnusableBase, BadMixtures) as error:
            raise DeploymentError(str(error)) from error
        if problems := port_problems(plan):
            raise DeploymentError("\n".join(problems))
        redis_url = plan.redis_url or await self._start_redis()
        await asyncio.to_thread(refuse_ignored, plan, redis_url, self._on_phase)
        await publish_first_versions(plan, self._run, self._on_phase)
        has_policy = plan.has_policy()
        # The URL holds a password, and all users of the machine can see arguments.
        self._env = {**_ENV, "REWARDLOOP_REDIS_URL": redis_url}
        shared = ["--store", str(plan.store)]
        door = plan.security.door_args
        serve = [*shared, "--listen", plan.listen, "--metrics-port", str(plan.metrics_port), *door(plan.listen)]
        # The trainer and the policy worker use all the time that they get. With the usual niceness of the engine,
        # scoring would wait for them.
        serve += ["--engine-nice", "3", *plan.model_args(), *plan.mixture_args(), *plan.serve_args]
        if has_policy:
            worker = [*shared, "--listen", plan.policy_listen, "--metrics-port", str(plan.policy_metrics_port)]
            worker += [*door(plan.policy_listen), *plan.policy_args]
            self._add("policy-worker", "rewardloop_policy.app", worker)
            serve += ["--policy-address", plan.policy_listen, *plan.security.access_args("policy-")]
        self._add("serve", "rewardloop_server.app", serve)
        services = ["rewardloop.v1.RewardService", "rewardloop.v1.FeedbackService"]
        await self._until_serving([*services, "rewardloop.v1.PolicyService"] if has_policy else services)
        if plan.gateway_listen:
            gateway = ["--listen", plan.gateway_listen, "--server", plan.listen]
            gateway += [*plan.security.gateway_args(plan.gateway_listen), *plan.gateway_args]
            await self._until_open(self._add("gateway", "rewardloop_gateway.app", gateway), plan.gateway_listen)
        train = [*shared, "--server", plan.listen, "--metrics-port", str(plan.trainer_metrics_port)]
        train += ["--work-dir", str(plan.trainer_work), "--archive", str(plan.ledger)]
        train += [*plan.security.access_args(), *plan.model_args(), *plan.train_args]
        await self._until_up(self._add("train", "rewardloop_trainer.app", train, nice=5), plan.trainer_metrics_port)

    async def start_unless(self, stop: asyncio.Event) -> bool:
        """Start, but give up as soon as ``stop`` is set.

        Returns:
            Whether everything runs.

        Raises:
            DeploymentError, TimeoutError: As `start` does.
        """
        starting, stopping = asyncio.create_task(self.start()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return False
            await starting
            return True
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    async def stop(self) -> None:
        """End every part, and let go of the data directory."""
        if self._redis is not None or self.supervisor.processes:
            self._on_phase("stopping")
        await self.supervisor.stop()
        if self._redis_watch is not None:
            self._redis_watch.cancel()
        if self._redis is not None:
            await asyncio.to_thread(self._redis.stop)
            if self._redis_start is not None:  # its thread may start a server after the stop above
                await asyncio.gather(self._redis_start, return_exceptions=True)
                await asyncio.to_thread(self._redis.stop)
        if self._lock is not None:
            try:
                self._processes.clear()
            except OSError as error:  # the next start sees that the processes have ended
                report(log.error, "file of processes not deleted", error=str(error))
            os.close(self._lock)
            self._lock = None

    async def served(self) -> list[str]:
        """Return for each model which version serves. A server that does not say it is one line more."""
        try:
            async with self.plan.security.client(self.plan.listen, 5.0) as client:
                return await served_lines(self.plan, client)
        except (RewardloopError, StoreError) as error:
            return [f"which version serves is not known: {error}"]

    def pids(self) -> list[int]:
        """Process ids of all parts that run."""
        found = [process.pid for process in self.supervisor.processes if process.is_running]
        return [pid for pid in [*found, self._redis.pid if self._redis else None] if pid is not None]

    def _take_data(self) -> None:
        """Lock the data directory for this process. Raises DeploymentError if another deployment still runs on it."""
        data = self.plan.data
        data.mkdir(parents=True, exist_ok=True)
        lock = os.open(data / UP_LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise DeploymentError(
                f"another rewardloop runs on {data}: 'rewardloop down --data {data}' ends it"
            ) from error
        try:
            left = [each for each in self._processes.running() if each.name != SUPERVISOR]
        except ProcessFileError as error:
            os.close(lock)
            raise DeploymentError(str(error)) from error
        if left:
            os.close(lock)
            named = ", ".join(f"{each.name} (pid {each.pid})" for each in left)
            raise DeploymentError(
                f"{named} of an earlier rewardloop on {data} still run: 'rewardloop down --data {data}' ends them"
            )
        self._lock = lock
        self._processes.clear()
        self._processes.record(SUPERVISOR, os.getpid())

    def _add(self, name: str, module: str, args: Sequence[str], nice: int = 0) -> Process:
        self._on_phase(f"starting {name}")
        return self.supervisor.add(self._process(name, module, args, nice))

    def _process(self, name: str, module: str, args: Sequence[str], nice: int = 0) -> Process:
        return Process(
            name=name,
            argv=[sys.executable, "-m", module, *args],
            log_path=self.plan.logs / f"{name}.log",
            env=self._env,
            nice=nice,
            on_start=partial(self._processes.record, name),
        )

    async def _run(self, name: str, module: str, args: Sequence[str]) -> None:
        """Run a module to its end. Raises DeploymentError if it fails."""
        process = self._process(name, module, args)
        saying = asyncio.create_task(self._say_seconds(name, process))
        try:
            process.start()
            status = await process.wait()
        finally:
            saying.cancel()
            await process.stop()
        if status != 0:
            raise DeploymentError(f"{name} failed (status {status}), {process.log_path}:\n{process.tail()}")

    async def _say_seconds(self, name: str, process: Process) -> None:
        """Say every few seconds how long a process has run, and the last line of its log."""
        started = time.monotonic()
        before = process.log_path.stat().st_size if process.log_path.exists() else 0  # what earlier runs have said
        while True:
            await asyncio.sleep(_SAY_EVERY_S)
            said = process.log_path.read_bytes()[before:].decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "")
            self._on_phase(f"{name} has run for {time.monotonic() - started:.0f} s{': ' if last else ''}{last}")

    async def _start_redis(self) -> str:
        self._on_phase("starting redis-server")
        try:
            self._redis = EmbeddedRedis(
                self.plan.redis_data,
                door=open_door(self.plan.redis_data),
                memory_mib=self.plan.redis_memory_mib,
                on_start=partial(self._processes.record, "redis-server"),
            )
            await self._until_started(self._redis)
        except RedisServerError as error:
            raise DeploymentError(str(error)) from error
        self._redis_watch = asyncio.create_task(self._watch_redis(self._redis))
        return self._redis.url

    async def _until_started(self, redis: EmbeddedRedis) -> None:
        """Start Redis in a thread that `stop` waits for, even if the caller is cancelled."""
        self._redis_start = asyncio.ensure_future(asyncio.to_thread(redis.start))
        await asyncio.shield(self._redis_start)

    async def _watch_redis(self, redis: EmbeddedRedis) -> None:
        while True:
            await asyncio.sleep(0.2)
            if redis.is_running:
                redis.retry_record()
                with suppress(OSError):  # it has none yet, or there is no room for a copy
                    bound_log(redis.log_path)
                continue
            report(log.warning, "redis-server died, restarting")
            try:
                await self._until_started(redis)
            except (RedisServerError, OSError) as error:  # there is no memory or no disk for it now: tried again
                report(log.error, "redis-server not started", error=str(error))
                await asyncio.sleep(1.0)

    async def _until_serving(self, services: Sequence[str], patience_s: float = 90.0) -> None:
        """Raises DeploymentError if a process keeps dying, and TimeoutError if the services are not warm in time."""
        self._on_phase("waiting until the services are warm")
        waiting = list(services)
        async with self.plan.security.client(self.plan.listen, 2.0) as client, asyncio.timeout(patience_s):
            while waiting:
                self._refuse_dying()
                try:
                    if await client.health(waiting[0]):
                        waiting.pop(0)
                        continue
                except RewardloopError as error:
                    log.debug("not serving yet", service=waiting[0], error=str(error))
                await asyncio.sleep(0.1)

    async def _until_up(self, process: Process, metrics_port: int) -> None:
        """Return once the process answers on its metrics port, or has run for a while.

        Raises DeploymentError if it keeps dying.
        """
        if metrics_port:
            await self._until_open(process, f"127.0.0.1:{metrics_port}")

    async def _until_open(self, process: Process, address: str) -> None:
        """Return once the process answers on an address, or has run for a while. Raises DeploymentError."""
        host, _, port = address.rpartition(":")
        while not process.has_been_stable:
            self._refuse_dying()
            with suppress(OSError):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                writer.close()
                return
            await asyncio.sleep(0.1)

    def _refuse_dying(self) -> None:
        for process in self.supervisor.processes:
            if process.restarts >= _MOST_RESTARTS:
                raise DeploymentError(f"{process.name} keeps dying, {process.log_path}:\n{process.tail()}")
