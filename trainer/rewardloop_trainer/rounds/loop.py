"""When which model learns: waits for signals, runs rounds, and survives the ones that fail."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from rewardloop_trainer.archive.fence import Fenced
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES
from rewardloop_trainer.learning.gradients import NonFiniteGradients
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.round_state import ModelState, Round, StateFile
from rewardloop_trainer.rounds.track import Interrupted, RoundTrack, ServerAway, Waiting
from rewardloop_trainer.vocabulary import ModelName, Outcome, RoundEnd

if TYPE_CHECKING:  # OpenTelemetry is not there unless tracing is on
    from rewardloop_trainer.tracing import TrainerTracing

log = structlog.get_logger()

_MAX_FAILURES = 3
# What a full disk says; anything else that the system refuses is a failure of the round.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class RoundKills(Exception):
    """The round ended its process too often."""


@dataclass(frozen=True, slots=True)
class Learner:
    """A model that learns from signals.

    ``min_signals``: so many new signals start a round. ``max_interval_s``: so many seconds after the last round,
    one new signal does. ``run``: one round, from the phase that its track is in; raises `Interrupted`, `ServerAway`
    (the round waits to be promoted), `Waiting`, or anything else for a failure.
    """

    model: ModelName
    min_signals: int
    max_interval_s: float
    run: Callable[[RoundTrack], Outcome]


class Loop:
    """Runs the learners' rounds one after another, in their order, until ``stop`` is set."""

    def __init__(
        self,
        learners: Sequence[Learner],
        ledger: Ledger,
        state_file: StateFile,
        metrics: TrainerMetrics,
        work_dir: Path,
        stop: threading.Event,
        *,
        seed: int = 0,
        retry_first_s: float = 5.0,
        max_deaths: int = 5,
        poll_s: float = 1.0,
        clock: Callable[[], float] = time.time,
        tracing: TrainerTracing | None = None,
    ) -> None:
        self._learners = tuple(learners)
        self._ledger = ledger
        self._file = state_file
        self._metrics = metrics
        self._work_dir = work_dir
        self._stop = stop
        self._seed = seed
        self._retry_first_s = retry_first_s
        self._max_deaths = max_deaths
        self._poll_s = poll_s
        self._clock = clock
        self._tracing = tracing
        self._started_at = clock()
        self._pauses: dict[str, tuple[float, float]] = {}  # from when until when a model's round waits
        self._waits: dict[str, int] = {}
        self._awaits_people: set[str] = set()
        self.arrived = threading.Event()
        self.rounds_ended = 0

    def run(self, *, max_rounds: int | None = None, ends: Callable[[], bool] = lambda: False) -> None:
        """Until stopped, until ``max_rounds`` have ended, or until nothing is due and ``ends()``."""
        if not self._file.path.exists():
            self._file.write(self._file.read())  # the trainer's id is fixed from the first start
        state = self._file.read()
        for learner in self._learners:
            present = state.of(learner.model).round
            self._metrics.in_phase(learner.model, present.phase if present else "idle")
            self._metrics.min_signals.labels(model=learner.model).set(learner.min_signals)
            self._metrics.last_round.labels(model=learner.model).set(state.of(learner.model).ended_at)
        while not self._stop.is_set() and (max_rounds is None or self.rounds_ended < max_rounds):
            if not self._run_due() and not self._stop.is_set():
                if ends() and not self._is_any_open():  # in this order: what arrived before the end is seen
                    return
                self.arrived.wait(self._poll_s)
                self.arrived.clear()

    def due(self, learner: Learner) -> bool:
        """Whether a round should start now, by signals or by time."""
        state = self._file.read().of(learner.model)
        new = self._ledger.rows_after(state.learned_through or None)
        self._metrics.new_signals.labels(model=learner.model).set(new)
        waited = self._clock() - (state.ended_at or self._started_at)
        # Less than nothing: the clock was set back, by who knows how much.
        return new >= learner.min_signals or (new >= 1 and not 0 <= waited < learner.max_interval_s)

    def _run_due(self) -> bool:
        """Run each learner that has a round open or due; False when none had."""
        ran = False
        for learner in self._learners:
            state = self._file.read().of(learner.model)
            if self._stop.is_set() or self._is_paused(learner.model):
                continue
            if state.round is None:
                if not self.due(learner):
                    continue
                self._open(learner.model, state)
            ran = True
            self._attempt(learner)
        return ran

    def _is_any_open(self) -> bool:
        state = self._file.read()
        return any(
            learner.model not in self._awaits_people if state.of(learner.model).round else self.due(learner)
            for learner in self._learners
        )

    def _open(self, model: ModelName, state: ModelState) -> None:
        until = self._ledger.last_stream_id
        if until is None:
            raise ValueError("a round needs signals")
        number = state.rounds + 1
        new = self._ledger.rows_after(state.learned_through or None)
        opened = Round(
            number=number,
            phase="training",
            after_stream_id=state.learned_through,
            until_stream_id=until,
            signals=self._ledger.row_count - self._ledger.rows_after(until),
            new_signals=new,
            seed=self._seed * 1_000_003 + number,
            started_at=self._clock(),
        )
        RoundTrack(model, self._file, self._metrics).reach(opened)
        log.info("round begins", model=model, round=number, new_signals=new, signals=opened.signals)

    def _attempt(self, learner: Learner) -> None:
        track = RoundTrack(learner.model, self._file, self._metrics)
        if track.now.starts >= self._max_deaths:
            self._give_up(learner.model, track.now)
            return
        track.reach(replace(track.now, starts=track.now.starts + 1))
        started = time.monotonic()
        try:
            with self._tracing.in_round(learner.model, track.now.number) if self._tracing else nullcontext():
                outcome: RoundEnd = self._came_back(learner, track)
        except Interrupted:
            log.info("round interrupted: it goes on at the next start", model=learner.model, round=track.now.number)
            return
        except Waiting as wait:
            self._awaits_people.add(learner.model)
            self._pause(learner.model, wait.seconds)
            return
        except (ServerAway, *REDIS_FAILURES) as error:
            self._later(learner.model, "not reachable, trying again", str(error))
            return
        except Fenced:
            raise
        except Exception as error:  # a round may fail in any way a model or its data can; three times, then skip
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                self._metrics.disk_errors.inc()
                self._later(learner.model, "the disk is full, trying again", str(error))
                return
            self._metrics.count_round(learner.model, "failed")
            if isinstance(error, NonFiniteGradients):
                self._metrics.nonfinite.labels(model=learner.model).inc()
            failed = replace(track.now, failures=track.now.failures + 1)
            track.reach(failed)
            log.exception("round failed", model=learner.model, round=failed.number, failures=failed.failures)
            if failed.failures < _MAX_FAILURES:
                self._later(learner.model, "trying the round again", str(error))
                return
            self._keep_failed(learner.model, failed, error)
            outcome = "skipped"
        finally:
            self._metrics.train_seconds.labels(model=learner.model).observe(time.monotonic() - started)
        self._close(learner.model, track.now, outcome)

    def _later(self, model: ModelName, event: str, reason: str) -> None:
        self._waits[model] = self._waits.get(model, 0) + 1
        delay = min(self._retry_first_s * 2 ** min(self._waits[model] - 1, 20), 300.0)
        self._pause(model, delay)
        log.warning(event, model=model, reason=reason, retry_in_s=delay)

    def _came_back(self, learner: Learner, track: RoundTrack) -> Outcome:
        """Run the round, and note that it did not take the process with it."""
        try:
            outcome = learner.run(track)
        except Fenced:
            raise
        except BaseException:
            track.reach(replace(track.now, starts=0))
            raise
        track.reach(replace(track.now, starts=0))
        return outcome

    def _give_up(self, model: ModelName, now: Round) -> None:
        """A round that ended the process again and again in one phase would do so for ever."""
        reason = f"the process died {now.starts} times in phase {now.phase!r}"
        log.error("round given up", model=model, round=now.number, reason=reason)
        self._keep_failed(model, now, RoundKills(reason))
        rounds = self._work_dir / "rounds" / f"{model}-{now.number}"
        if rounds.exists():
            rounds.rename(self._work_dir / "failed" / f"{model}-{now.number}" / "round")
        self._close(model, now, "given_up")

    def _pause(self, model: ModelName, seconds: float) -> None:
        now = self._clock()
        self._pauses[model] = (now, now + seconds)

    def _is_paused(self, model: ModelName) -> bool:
        since, until = self._pauses.get(model, (0.0, 0.0))
        return since <= self._clock() < until  # before `since` the clock was set back

    def _keep_failed(self, model: ModelName, failed: Round, error: Exception) -> None:
        kept = self._work_dir / "failed" / f"{model}-{failed.number}"
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "error.txt").write_text(f"{type(error).__name__}: {error}\n{failed}\n")

    def _close(self, model: ModelName, ended: Round, outcome: RoundEnd) -> None:
        state = self._file.read()
        self._file.write(state.with_model(model, state.of(model).finished(self._clock())))
        self._metrics.in_phase(model, "idle")
        self._metrics.count_round(model, outcome)
        self._metrics.last_round.labels(model=model).set(self._clock())
        self._waits.pop(model, None)
        self._awaits_people.discard(model)
        self._pauses.pop(model, None)
        self.rounds_ended += 1
        log.info(
            f"{model} round {ended.number} {outcome}"
            + (f": version {ended.version} is live" if outcome == "promoted" else ""),
            seconds=round(self._clock() - ended.started_at, 1),
            new_signals=ended.new_signals,
            signals=ended.signals,
            **{name: round(value, 4) for name, value in sorted(ended.metrics.items())},
        )
