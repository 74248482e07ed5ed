"""Lets one trainer lead at a time, by a lock in Redis that expires when its holder dies."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import redis
import structlog

from rewardloop.formats import keys
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES

log = structlog.get_logger()

_TAKE, _RENEW, _RELEASE = (
    files(__package__).joinpath("scripts", f"{name}_lock.lua").read_text() for name in ("take", "renew", "release")
)


class LeaderLock:
    """The lock that the leading trainer holds from `wait` until `release`.

    A thread of its own renews the lock, so that a long training step does not lose it. While Redis is away the lock
    counts as held. If Redis comes back without it, it is taken again unless another trainer was first.

    Attributes:
        epoch: The number of this leader. A later leader's is higher, even if Redis forgot the earlier ones, because it
            is also higher than ``newest_epoch()``. By it `Fence` keeps an earlier leader from writing.
        lost: Set once another trainer holds the lock. This process must then stop.
    """

    def __init__(self, client: redis.Redis, ttl_s: float = 10.0, newest_epoch: Callable[[], int] = lambda: 0) -> None:
        self._newest_epoch = newest_epoch
        self._redis = client
        self._ttl_ms = int(ttl_s * 1000)
        self._token = uuid.uuid4().hex
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = threading.Event()
        self.epoch = 0

    def wait(self, stop: threading.Event, poll_s: float = 0.5) -> bool:
        """Wait until this process is the leader. Returns False if ``stop`` was set first."""
        said, delay = "", poll_s
        while not stop.is_set():
            try:
                if self._take():
                    self._thread = threading.Thread(target=self._renew, name="leader-lock", daemon=True)
                    self._thread.start()
                    return True
                reason, delay = "another trainer is running", poll_s
            except REDIS_FAILURES as error:
                reason, delay = f"Redis does not answer: {error}", min(2 * delay, 10.0)
            if reason != said:
                log.warning("waiting to lead", reason=reason)
                said = reason
            stop.wait(delay)
        return False

    def release(self) -> None:
        """Free the lock, so that the next trainer starts at once."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            try:
                self._redis.eval(_RELEASE, 1, keys.TRAINER_LOCK, self._token)
            except REDIS_FAILURES as error:
                log.warning("the lock was not released: it expires", ttl_ms=self._ttl_ms, error=str(error))

    def _take(self) -> bool:
        # A lock that is taken again keeps its epoch: the fence stops this process if another trainer led meanwhile.
        least = self.epoch or self._newest_epoch() + 1
        epoch = self._run(_TAKE, str(least))
        if epoch is None:
            return False
        self.epoch = self.epoch or int(epoch)
        return True

    def _renew(self) -> None:
        while not self._done.wait(self._ttl_ms / 4000):
            try:
                if not self._run(_RENEW, str(self.epoch)) and not self._take():
                    log.error("another trainer took the lock", at=time.time())
                    self.lost.set()
                    return
            except REDIS_FAILURES as error:
                log.warning("the lock was not renewed", error=str(error))

    def _run(self, script: str, epoch: str) -> Any:
        return self._redis.eval(script, 2, keys.TRAINER_LOCK, keys.TRAINER_EPOCH, self._token, str(self._ttl_ms), epoch)
