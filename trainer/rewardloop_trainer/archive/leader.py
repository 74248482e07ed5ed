"""One trainer at a time: a lock in Redis that expires when its holder dies."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

import redis
import structlog

from rewardloop.formats import keys
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES

log = structlog.get_logger()

_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""


class LeaderLock:
    """Held from `wait` until `release`; renewed in a thread of its own, so that a long step does not lose it.

    ``epoch``: counts leaders; a later leader's is higher, and higher than ``newest_epoch()``, which outlives Redis:
    `Fence` keeps an earlier leader from writing by it.
    ``lost`` is set once another trainer holds the lock: this process must then stop. A Redis that is away, or came
    back without the key, does not lose it: the lock is taken again unless another trainer was first.
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
        """Wait until this process is the leader; False when ``stop`` came first."""
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
        """Let the next trainer start at once."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            try:
                self._redis.eval(_RELEASE, 1, keys.TRAINER_LOCK, self._token)
            except REDIS_FAILURES as error:
                log.warning("the lock was not released: it expires", ttl_ms=self._ttl_ms, error=str(error))

    def _take(self) -> bool:
        if not self._redis.set(keys.TRAINER_LOCK, self._token, nx=True, px=self._ttl_ms):
            return False
        counted = int(self._redis.incr(keys.TRAINER_EPOCH))
        # Taken again after Redis lost it, the epoch stays: if another led meanwhile, the fence says so.
        self.epoch = self.epoch or max(counted, self._newest_epoch() + 1)
        if self.epoch > counted:
            self._redis.set(keys.TRAINER_EPOCH, self.epoch)
        return True

    def _renew(self) -> None:
        while not self._done.wait(self._ttl_ms / 4000):
            try:
                renewed = self._redis.eval(_RENEW, 1, keys.TRAINER_LOCK, self._token, str(self._ttl_ms))
                if not renewed and not self._take():
                    log.error("another trainer took the lock", at=time.time())
                    self.lost.set()
                    return
            except REDIS_FAILURES as error:
                log.warning("the lock was not renewed", error=str(error))
