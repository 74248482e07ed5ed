"""The sampling thread. Requests join its running batch between two tokens, and leave it when they are done."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog

from rewardloop_policy.policy_model import PolicyModel
from rewardloop_policy.sample_callers import Callers
from rewardloop_policy.sample_queue import Job, SampleQueue
from rewardloop_sampling.running_batch import RunningBatch
from rewardloop_sampling.sampling import Task
from rewardloop_server.calls.errors import DeadlinePassed, NotLoadable
from rewardloop_server.calls.vocabulary import SAMPLING_LANE, Stage
from rewardloop_server.guard.watch import RunBounds, Watch, Work
from rewardloop_server.observe.metrics import ServerMetrics

log = structlog.get_logger()

# What torch and a model raise for a request, or for want of memory.
_FAILURES = (ArithmeticError, RuntimeError, ValueError, IndexError)
# While more wait than there is room for, requests join after so many steps: prompts are read faster together.
_JOIN_EVERY = 8


class _Overrun(RuntimeError):
    """Raised for a step that did not end in time."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much is sampled at once.

    Attributes:
        rows: Most candidates, unless a single request has more.
        tokens: Most tokens of prompts and answers, where every candidate counts as many as the longest may get, unless
            a single request takes more.
    """

    rows: int
    tokens: int

    def holds(self, jobs: Sequence[Job]) -> bool:
        """Return whether these requests can be sampled at once."""
        rows = sum(job.request.candidates for job in jobs)
        longest = max(len(job.request.prompt) + job.request.max_new_tokens for job in jobs)
        return len(jobs) == 1 or (rows <= self.rows and rows * longest <= self.tokens)


@dataclass(slots=True, eq=False)
class _Running:
    """The requests of one version that are sampled together."""

    policy: PolicyModel
    batch: RunningBatch
    jobs: dict[Task, Job] = field(default_factory=dict)


class SampleThread:
    """Gives a token to every candidate in turn.

    Candidates of one version are sampled together, those of several versions in alternation. If a step fails, its
    requests are sampled again one by one, and then only those that fail alone get the error.

    Args:
        queue: What waits.
        callers: Who waits for the answers.
        room: How much is sampled at once.
        metrics: Where the steps are measured.
        watch: Notices steps that do not end.
        bounds: How long a step may take.
    """

    def __init__(
        self,
        queue: SampleQueue,
        callers: Callers,
        room: Room,
        *,
        metrics: ServerMetrics,
        watch: Watch,
        bounds: RunBounds,
    ) -> None:
        self._queue = queue
        self._room = room
        self._callers = callers
        self._metrics = metrics
        self._watch = watch
        self._bounds = bounds
        self._running: dict[PolicyModel, _Running] = {}
        self._pause = 0  # steps before others join
        self._suspects: deque[Job] = deque()  # which are sampled alone, because a step with them failed

    def work(self) -> None:
        """Sample until nobody waits."""
        while self._running or self._suspects or len(self._queue):
            if self._suspects:
                self._admit_suspect()
            elif len(self._queue):
                self._admit()
            for running in list(self._running.values()):
                self._step(running)

    def _admit(self) -> None:
        """Let the requests that wait join, as many as there is room for."""
        self._pause -= 1
        if self._pause > 0 and self._running:
            return
        present = [job for running in self._running.values() for job in running.jobs.values()]
        joining: dict[PolicyModel, list[Job]] = {}

        def fits(job: Job) -> bool:
            running = self._running.get(job.policy)
            return (running is None or running.batch.can_join) and self._room.holds([*present, job])

        while (job := self._queue.take(fits)) is not None:
            if job.is_abandoned():
                self._dismiss(job, "queued")
            else:
                self._observe("queue", time.monotonic() - job.enqueued)
                present.append(job)
                joining.setdefault(job.policy, []).append(job)
        for policy, jobs in joining.items():
            self._join(policy, jobs)
        self._pause = _JOIN_EVERY if len(self._queue) else 0

    def _admit_suspect(self) -> None:
        """Let one request join once nothing else is sampled."""
        if self._running:
            return
        job = self._suspects.popleft()
        if job.is_abandoned():
            self._dismiss(job, "sampled")
        else:
            self._join(job.policy, [job])

    def _join(self, policy: PolicyModel, jobs: Sequence[Job]) -> None:
        """Read the prompts of requests to one version."""
        tasks = {policy.task(job.request, job.speech, job.is_abandoned): job for job in jobs}
        for job in jobs:
            job.joined = time.monotonic()
        try:
            running = self._running.get(policy) or _Running(policy, policy.batch())
            with self._watched(jobs, sum(len(job.request.prompt) for job in jobs)):
                running.batch.join(list(tasks))
        except _FAILURES as error:
            for task in tasks:
                task.end()
            self._fail(jobs, error)
            return
        running.jobs |= tasks
        self._running[policy] = running

    def _step(self, running: _Running) -> None:
        """Give a token to each candidate of a version, and answer the requests that are done."""
        jobs, rows = list(running.jobs.values()), running.batch.rows
        try:
            with self._watched(jobs, rows):
                done = running.batch.step()
        except _FAILURES as error:
            del self._running[running.policy]
            self._fail(jobs, error)
            return
        self._metrics.batch_rows.observe(rows)
        self._metrics.batch_tokens.observe(rows)
        for task in done:
            if (job := running.jobs.pop(task, None)) is not None:  # else its prompts took too long to read
                self._finish(task, job)
        if not running.jobs:
            del self._running[running.policy]

    def _finish(self, task: Task, job: Job) -> None:
        if task.error is not None:
            self._refuse(job, task.error)
            return
        if job.is_abandoned():
            self._dismiss(job, "sampled")
            return
        try:
            answers = job.policy.answers(task, job.speech)
        except _FAILURES as error:
            self._refuse(job, error)
            return
        now = time.monotonic()
        self._observe("run", now - job.joined)
        self._observe("total", now - job.enqueued)
        self._callers.answer(job, answers)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """Fail a request that was alone. Any others are under suspicion."""
        if len(jobs) == 1 and not self._running:
            self._refuse(jobs[0], error)
        else:
            self._suspects.extend(jobs)

    def _refuse(self, job: Job, error: Exception) -> None:
        version = job.policy.manifest.version
        log.error("sampling failed", version=version, exc_info=error)
        self._callers.answer(job, NotLoadable(f"policy {version} failed on this request"))

    def _dismiss(self, job: Job, where: str) -> None:
        """End a request for which nobody waits any more."""
        self._callers.answer(job, DeadlinePassed(f"the deadline passed while the request was {where}"))

    @contextmanager
    def _watched(self, jobs: Sequence[Job], tokens: int) -> Iterator[None]:
        """Watch the block as a step of these jobs. Raises _Overrun at its end if it did not end in time."""
        policy, stopped, has_ended = jobs[0].policy, threading.Event(), threading.Event()
        version = policy.manifest.version
        overran = partial(self._callers.overran, version, jobs, has_ended)
        lost = partial(self._callers.lost, jobs)
        limit_s = self._bounds.run_s(policy.token_s * tokens)
        try:
            with self._watch.over(Work("step", version, limit_s, stopped.set, overran, lost)):
                yield
        finally:
            has_ended.set()
        if stopped.is_set():
            raise _Overrun("a step did not end in time")

    def _observe(self, stage: Stage, seconds: float) -> None:
        self._metrics.stage_seconds.labels(stage=stage, lane=SAMPLING_LANE).observe(seconds)
