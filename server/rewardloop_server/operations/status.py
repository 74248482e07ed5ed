"""Gathers the state of the whole loop: versions, trainer, queue, requests, alerts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import median
from typing import Any, Protocol

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import Gauge
from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.formats.mixing.names import POLICY
from rewardloop.formats.store import Manifest, ModelStore, StoreError
from rewardloop.formats.storing.active import Active, Share
from rewardloop.v1 import operations_pb2
from rewardloop_server.calls.redis_link import redis_errors
from rewardloop_server.calls.vocabulary import DURABILITIES, Durability
from rewardloop_server.observe.backlog import read_backlog
from rewardloop_server.operations.alerts import Seen, alerts_of
from rewardloop_server.operations.dead_letters import DeadLetters
from rewardloop_server.operations.published import Published
from rewardloop_server.operations.traffic import Measured, traffic_of
from rewardloop_server.operations.waiting import waiting_for

log = structlog.get_logger()


class Host(Protocol):
    """The part of `VersionHost` that says whether a version serves."""

    @property
    def active(self) -> Manifest | None: ...


class Pointers(Protocol):
    """The part of `ActivePointer` that reads."""

    async def read(self, model: str) -> Active | None: ...


class LoopStatus:
    """Reads the state of the loop. `read` raises RedisUnavailable.

    Args:
        hosts: The reward models that this process serves.
        has_policy: Whether this process knows a policy worker. Without one the policy has no status.
        store: The model store.
        pointer: The models' pointers.
        redis: Where signals and the trainer's reports are.
        published: Reads these reports.
        letters: The dead letters.
        measured: By this server, and by those that answer beside it.
    """

    def __init__(
        self,
        hosts: Mapping[str, Host],
        has_policy: bool,
        store: ModelStore,
        pointer: Pointers,
        redis: Redis,
        published: Published,
        letters: DeadLetters,
        measured: Measured,
    ) -> None:
        self._hosts = hosts
        self._models = (*hosts, POLICY) if has_policy else tuple(hosts)
        self._store = store
        self._pointer = pointer
        self._redis: Any = redis  # its types are unions over every protocol version and decoding
        self._published = published
        self._letters = letters
        self._metrics = measured.metrics
        self._series = measured.series
        self._started_s = time.time()
        self._arrivals: dict[tuple[str, str], tuple[str, tuple[float, ...]]] = {}  # by model and version

    async def read(self) -> operations_pb2.GetStatusResponse:
        """Return the state."""
        now_s = time.time()
        trainer = await self._published.trainer()
        models = [await self._model(name, trainer, now_s) for name in self._models]
        backlog = await read_backlog(self._redis)
        queue = operations_pb2.QueueStatus(
            stream_length=backlog.length,
            pending=backlog.pending,
            oldest_wait_s=backlog.lag_s,
            dead_letters=backlog.dead,
        )
        seen = Seen(
            now_s,
            models,
            {name: host.active is not None for name, host in self._hosts.items()},
            trainer is not None,
            queue,
            await self._letters.newest_time_s(),
            self._durability(),
            await self._published.rounds(),
            await self._published.crowd(),
        )
        return operations_pb2.GetStatusResponse(
            time=_stamp(now_s),
            models=models,
            trainer=trainer,
            queue=queue,
            traffic=traffic_of(await asyncio.to_thread(self._series), self._started_s),
            alerts=alerts_of(seen),
            engine=_shown(self._metrics.scoring_engine, "engine"),
        )

    async def _model(
        self, name: str, trainer: operations_pb2.TrainerStatus | None, now_s: float
    ) -> operations_pb2.ModelStatus:
        status = operations_pb2.ModelStatus(model=name)
        active = await self._pointer.read(name)
        if active is not None:
            _point(status, active)
            seconds = await self._signal_to_live_s(name, active.version)
            if seconds is not None:
                status.signal_to_live_s = seconds
        elif (host := self._hosts.get(name)) is not None and host.active is not None:
            status.active_version = host.active.version
        training = _training_of(name, trainer.models if trainer else ())
        if training is not None:
            status.training.CopyFrom(training)
        status.waiting_for = waiting_for(status, trainer is not None, now_s)
        return status

    async def _signal_to_live_s(self, model: str, version: str) -> float | None:
        """Return the median over the signals in the version's manifest; None if it has none, or has not answered."""
        known = self._arrivals.get((model, version))
        if known is None:
            try:
                manifest = await asyncio.to_thread(self._store.manifest, model, version)
            except (StoreError, OSError) as error:
                log.warning("the active version's manifest cannot be read", model=model, error=str(error))
                return None
            known = manifest.digest, manifest.data.arrivals if manifest.data else ()
            self._arrivals[model, version] = known
        digest, arrivals = known
        if not arrivals:
            return None
        with redis_errors():
            served = await self._redis.get(keys.FIRST_SERVED + digest)
            return None if served is None else median(max(0.0, float(served) - arrival) for arrival in arrivals)

    def _durability(self) -> Durability:
        shown = _shown(self._metrics.redis_durability, "durability")
        return next((each for each in DURABILITIES if each == shown), "unknown")


def _shown(gauge: Gauge, label: str) -> str:
    """Return the value of the label whose series is not 0; "" if all are."""
    samples = next(iter(gauge.collect())).samples
    return next((sample.labels[label] for sample in samples if sample.value), "")


def _point(status: operations_pb2.ModelStatus, active: Active) -> None:
    status.active_version = active.version
    status.previous_versions[:] = active.previous
    status.promotions_held = active.is_held
    status.rejected_versions[:] = active.rejected
    status.change_reason = active.reason
    if active.changed_at:
        status.change_time.FromDatetime(datetime.fromisoformat(active.changed_at))
    if active.canary is not None:
        status.canary.CopyFrom(_share(active.canary))
    if active.shadow is not None:
        status.shadow.CopyFrom(_share(active.shadow))


def _share(holder: Share) -> operations_pb2.VersionShare:
    return operations_pb2.VersionShare(version=holder.version, share=holder.share)


def _training_of(model: str, models: Sequence[operations_pb2.TrainingStatus]) -> operations_pb2.TrainingStatus | None:
    return next((each for each in models if each.model == model), None)


def _stamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
