"""Callers who go on calling while faults are injected, and who remember all that they were told."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from support.reward_graphs import expected_logit

from rewardloop_client import Feedback, RewardloopClient, RewardloopError

_PAUSE_S = 0.02


@dataclass
class Seen:
    """What callers saw since the last look: outcomes by name, and the longest call in seconds."""

    scores: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    slowest_score_s: float = 0.0
    slowest_record_s: float = 0.0


class Callers:
    """Threads that score and record at each of ``addresses``, without retries of the client's.

    Whoever records sends a signal again until it is acknowledged, as products do. ``pause_recording`` holds them.
    """

    def __init__(self, addresses: list[str]) -> None:
        self.acknowledged: list[str] = []
        self.wrong: list[str] = []
        self.allowed = {"1"}
        self.timeout_s = 20.0
        self._seen = Seen()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._records = threading.Event()
        self._records.set()
        self._sending = [threading.Lock() for _ in addresses]
        self._numbers = itertools.count()
        self._threads = [
            threading.Thread(target=work, args=(i, address), daemon=True)
            for i, address in enumerate(addresses)
            for work in (self._score, self._record)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._records.set()
        for thread in self._threads:
            thread.join()

    def look(self) -> Seen:
        """What was seen since the last time."""
        with self._lock:
            seen, self._seen = self._seen, Seen()
        return seen

    def counts(self) -> tuple[int, int]:
        """Answered scores and acknowledged signals since the last look."""
        with self._lock:
            return self._seen.scores["answered"], self._seen.records["acknowledged"]

    def pause_recording(self) -> None:
        """Returns once what was being sent is acknowledged."""
        self._records.clear()
        for sending in self._sending:
            with sending:
                pass

    def resume_recording(self) -> None:
        self._records.set()

    def _score(self, index: int, address: str) -> None:
        with RewardloopClient(address, max_attempts=1) as client:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    group = client.score("alpha", ["beta", "gamma"], timeout_s=self.timeout_s)
                    outcome = "answered"
                    self._check(group.model_version.version, group.scores[0].logit)
                except RewardloopError as error:
                    outcome = error.reason or error.code.name
                with self._lock:
                    self._seen.scores[outcome] += 1
                    self._seen.slowest_score_s = max(self._seen.slowest_score_s, time.monotonic() - started)
                self._stop.wait(_PAUSE_S)

    def _check(self, version: str, logit: float) -> None:
        right = expected_logit("alpha", "beta", float(version))
        if version not in self.allowed or not math.isclose(logit, right, rel_tol=1e-4):
            self.wrong.append(f"{logit} by version {version}, allowed {sorted(self.allowed)}")

    def _record(self, index: int, address: str) -> None:
        with RewardloopClient(address, max_attempts=1) as client:
            while not self._stop.is_set():
                self._records.wait()
                with self._sending[index]:
                    if self._records.is_set():
                        self._send(client, f"signal-{next(self._numbers)}")

    def _send(self, client: RewardloopClient, event_id: str) -> None:
        event = Feedback.choice(prompt="alpha", responses=["beta", "gamma"], chosen=1, rejected=0, event_id=event_id)
        outcome = ""
        while outcome != "acknowledged" and not self._stop.is_set():
            started = time.monotonic()
            try:
                client.record(event, timeout_s=self.timeout_s)
                outcome = "acknowledged"
                self.acknowledged.append(event_id)
            except RewardloopError as error:
                outcome = error.reason or error.code.name
            with self._lock:
                self._seen.records[outcome] += 1
                self._seen.slowest_record_s = max(self._seen.slowest_record_s, time.monotonic() - started)
            self._stop.wait(_PAUSE_S)
