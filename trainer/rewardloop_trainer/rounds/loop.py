"""Decides which model learns when: waits for signals, runs rounds, and survives the rounds that fail."""

from __future__ import annotations

import threading
import time
from collections import Counter
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
from rewardloop_trainer.rounds.bulletin.board import Board
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.kept_files import bound_files
from rewardloop_trainer.rounds.pauses import Interrupted, ServerAway, Waiting, is_disk_full
from rewardloop_trainer.rounds.trainer_state import ModelState, RoundState, StateFile
from rewardloop_trainer.vocabulary import ModelName, Outcome, RoundEnd

if TYPE_CHECKING:  # OpenTelemetry is not installed unless tracing is on
    from rewardloop_trainer.tracing import TrainerTracing

log = structlog.get_logger()

_MAX_FAILURES = 3
_MAX_RETRY_S = 300.0


class RoundKills(Exception):
    """Names the reason why a round is given up: its process died too often while it ran."""


@dataclass(frozen=True, slots=True)
class Learner:
    """A model that learns from signals, and when.

    Attributes:
        model: The model's name.
        min_signals: How many new signals start a round.
        max_interval_s: How many seconds after the last round one new signal starts the next.
        run: Runs one round from the phase that it is in. Raises `Interrupted`, `ServerAway` or `Waiting` if the round
            goes on later; any other exception is a failure.
        unread: Counts the signals after a stream id that the model cannot read. They do not count towards a round.
    """

    model: ModelName
    min_signals: int
    max_interval_s: float
    run: Callable[[CurrentRound], Outcome]
    unread: Callable[[str | None], int] = lambda after: 0


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How the loop runs its rounds.

    Attributes:
        work_dir: Where the files of rounds that failed are kept.
        seed: What the seed of each round is made from, together with its number.
        retry_first_s: The first pause before a round is tried again; it doubles with each attempt.
        max_deaths: How often the process may die in one phase of a round before the round is given up.
        poll_s: How often the loop looks for new signals that nothing announced.
    """

    work_dir: Path
    seed: int = 0
    retry_first_s: float = 5.0
    max_deaths: int = 5
    poll_s: float = 1.0


class Loop:
    """Runs the learners' rounds one after another, in their order, until ``stop`` is set.

    Set `arrived` to make the loop look for signals at once. `ended` counts the rounds that this loop has ended.
    """

    def __init__(  # noqa: PLR0913 - the parts of the one loop
        self,
        learners: Sequence[Learner],
        ledger: Ledger,
        state_file: StateFile,
        metrics: TrainerMetrics,
        stop: threading.Event,
        settings: LoopSettings,
        *,
        clock: Callable[[], float] = time.time,
        tracing: TrainerTracing | None = None,
        board: Board | None = None,
    ) -> None:
        self._learners = tuple(learners)
        self._ledger = ledger
        self._file = state_file
        self._metrics = metrics
        self._stop = stop
        self._settings = settings
        self._clock = clock
        self._tracing = tracing
        self._board = board or Board()
        self._started_at = clock()
        self._pauses: dict[str, tuple[float, float]] = {}  # by model: the times between which its round waits
        self._waits: dict[str, int] = {}
        self._survived: dict[str, int] = {}  # by model: the number of the last round that raised in this process
        self._awaits_people: set[str] = set()
        self.arrived = threading.Event()
        self.ended: Counter[RoundEnd] = Counter()

    @property
    def rounds_ended(self) -> int:
        return self.ended.total()

    @property
    def has_failed(self) -> bool:
        """Whether a round was skipped or given up, or is open after a failed attempt."""
        state = self._file.read()
        rounds = (state.of(learner.model).round for learner in self._learners)
        is_failing = any(each is not None and each.failures > 0 for each in rounds)
        return is_failing or self.ended["skipped"] > 0 or self.ended["given_up"] > 0

    def run(self, *, max_rounds: int | None = None, ends: Callable[[], bool] = lambda: False) -> None:
        """Run rounds until stopped, until ``max_rounds`` have ended, or until nothing is due and ``ends()`` is true."""
        if not self._file.path.exists():
            self._file.write(self._file.read())  # fixes the trainer's id at its first start
        state = self._file.read()
        self._board.lead(state.trainer_id)
        for learner in self._learners:
            present = state.of(learner.model).round
            if present is not None:
                self._board.reached(learner.model, present)
            self._metrics.in_phase(learner.model, present.phase if present else "idle")
            self._metrics.min_signals.labels(model=learner.model).set(learner.min_signals)
            self._metrics.last_round.labels(model=learner.model).set(state.of(learner.model).ended_at)
        while not self._stop.is_set() and (max_rounds is None or self.rounds_ended < max_rounds):
            if not self._run_due() and not self._stop.is_set():
                # In this order, a signal that arrived before ``ends()`` became true is seen.
                if ends() and not self._is_any_open():
                    return
                self.arrived.wait(self._settings.poll_s)
                self.arrived.clear()

    def due(self, learner: Learner) -> bool:
        """Say whether a round should start now, because of its signals or of the time since the last one."""
        state = self._file.read().of(learner.model)
        new, unread = self._new_signals(learner, state)
        self._metrics.new_signals.labels(model=learner.model).set(new)
        self._board.archived(self._ledger.row_count)
        self._board.counted(
            learner.model,
            new=new,
            least=learner.min_signals,
            unread=unread,
            interval_s=learner.max_interval_s,
            ended_at=state.ended_at,
        )
        waited = self._clock() - (state.ended_at or self._started_at)
        # A negative time means that the clock was set back, by an unknown amount.
        return new >= learner.min_signals or (new >= 1 and not 0 <= waited < learner.max_interval_s)

    def _new_signals(self, learner: Learner, state: ModelState) -> tuple[int, int]:
        """Return how many signals no finished round has seen that the model can read, and that it cannot read."""
        after = state.learned_through or None
        unread = learner.unread(after)
        return self._ledger.rows_after(after) - unread, unread

    def _run_due(self) -> bool:
        """Run each learner that has a round open or due. Returns False if none had."""
        ran = False
        for learner in self._learners:
            state = self._file.read().of(learner.model)
            if self._stop.is_set() or self._is_paused(learner.model):
                continue
            if state.round is None and not self.due(learner):
                continue
            ran = True
            try:
                if state.round is None:
                    self._open(learner, state)
                self._attempt(learner)
            except Exception as error:  # a full disk may be met by the round or by the notes that are kept of it
                if not is_disk_full(error):
                    raise
                self._metrics.disk_errors.inc()
                self._later(learner.model, "the disk is full, trying again", str(error))
        return ran

    def _is_any_open(self) -> bool:
        state = self._file.read()
        return any(
            learner.model not in self._awaits_people if state.of(learner.model).round else self.due(learner)
            for learner in self._learners
        )

    def _open(self, learner: Learner, state: ModelState) -> None:
        model = learner.model
        until = self._ledger.last_stream_id
        if until is None:
            raise ValueError("a round needs signals")
        number = state.rounds + 1
        new, _ = self._new_signals(learner, state)
        opened = RoundState(
            number=number,
            phase="training",
            after_stream_id=state.learned_through,
            until_stream_id=until,
            signals=self._ledger.rows_through(until),
            new_signals=new,
            seed=self._settings.seed * 1_000_003 + number,
            started_at=self._clock(),
            erasures=len(self._ledger.erasures),
        )
        CurrentRound(model, self._file, self._metrics, self._board).reach(opened)
        log.info("round begins", model=model, round=number, new_signals=new, signals=opened.signals)

    def _attempt(self, learner: Learner) -> None:
        current = CurrentRound(learner.model, self._file, self._metrics, self._board)
        self._board.resumed(learner.model)
        deaths = 0 if self._survived.get(learner.model) == current.state.number else current.state.starts
        if deaths >= self._settings.max_deaths:
            self._give_up(learner.model, current.state)
            return
        current.reach(replace(current.state, starts=deaths + 1))
        started = time.monotonic()
        try:
            with self._tracing.in_round(learner.model, current.state.number) if self._tracing else nullcontext():
                outcome: RoundEnd = self._run_and_survive(learner, current)
        except Interrupted:
            log.info("round interrupted: it goes on at the next start", model=learner.model, round=current.state.number)
            return
        except Waiting as wait:
            self._awaits_people.add(learner.model)
            self._pause(learner.model, wait.seconds, wait.reason)
            return
        except (ServerAway, *REDIS_FAILURES) as error:
            self._later(learner.model, "not reachable, trying again", str(error))
            return
        except Fenced:
            raise
        except Exception as error:  # models and data fail in any way; after three failures the round is skipped
            if is_disk_full(error):
                raise
            self._metrics.count_round(learner.model, "failed")
            if isinstance(error, NonFiniteGradients):
                self._metrics.nonfinite.labels(model=learner.model).inc()
            failed = replace(current.state, failures=current.state.failures + 1)
            current.reach(failed)
            self._board.failed(learner.model, failed.number, error)
            log.exception("round failed", model=learner.model, round=failed.number, failures=failed.failures)
            if failed.failures < _MAX_FAILURES:
                self._later(learner.model, "trying the round again", str(error))
                return
            self._keep_failed(learner.model, failed, error)
            outcome = "skipped"
        finally:
            self._metrics.train_seconds.labels(model=learner.model).observe(time.monotonic() - started)
        self._close(learner.model, current.state, outcome)

    def _later(self, model: ModelName, event: str, reason: str) -> None:
        self._waits[model] = self._waits.get(model, 0) + 1
        delay = min(self._settings.retry_first_s * 2 ** min(self._waits[model] - 1, 20), _MAX_RETRY_S)
        self._pause(model, delay, f"{event}: {reason}")
        log.warning(event, model=model, reason=reason, retry_in_s=delay)

    def _run_and_survive(self, learner: Learner, current: CurrentRound) -> Outcome:
        """Run the round, then note in the state file that the process survived it."""
        number = current.state.number
        try:
            outcome = learner.run(current)
        except Fenced:
            raise
        except BaseException:
            self._survived[learner.model] = number  # noted here too: a full disk takes no state file
            current.reach(replace(current.state, starts=0))
            raise
        current.reach(replace(current.state, starts=0))
        return outcome

    def _give_up(self, model: ModelName, now: RoundState) -> None:
        """End a round in whose present phase the process died too often: it would die in it for ever."""
        reason = f"the process died {now.starts} times in phase {now.phase!r}"
        log.error("round given up", model=model, round=now.number, reason=reason)
        self._keep_failed(model, now, RoundKills(reason))
        rounds = self._settings.work_dir / "rounds" / f"{model}-{now.number}"
        if rounds.exists():
            rounds.rename(self._settings.work_dir / "failed" / f"{model}-{now.number}" / "round")
        self._close(model, now, "given_up")

    def _pause(self, model: ModelName, seconds: float, reason: str) -> None:
        now = self._clock()
        self._pauses[model] = (now, now + seconds)
        self._board.paused(model, reason, now + seconds)

    def _is_paused(self, model: ModelName) -> bool:
        since, until = self._pauses.get(model, (0.0, 0.0))
        return since <= self._clock() < until  # a time before `since` means that the clock was set back

    def _keep_failed(self, model: ModelName, failed: RoundState, error: Exception) -> None:
        kept = self._settings.work_dir / "failed" / f"{model}-{failed.number}"
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "error.txt").write_text(f"{type(error).__name__}: {error}\n{failed}\n")

    def _close(self, model: ModelName, ended: RoundState, outcome: RoundEnd) -> None:
        state = self._file.read()
        self._file.write(state.with_model(model, state.of(model).finished(self._clock(), outcome)))
        bound_files(self._settings.work_dir, model, ended.number)
        self._metrics.in_phase(model, "idle")
        self._metrics.count_round(model, outcome)
        self._board.ended(model, ended, outcome)
        self._metrics.last_round.labels(model=model).set(self._clock())
        self._waits.pop(model, None)
        self._awaits_people.discard(model)
        self._pauses.pop(model, None)
        self.ended[outcome] += 1
        log.info(
            f"{model} round {ended.number} {outcome}"
            + (f": version {ended.version} is live" if outcome == "promoted" else ""),
            seconds=round(self._clock() - ended.started_at, 1),
            new_signals=ended.new_signals,
            signals=ended.signals,
            **{name: round(value, 4) for name, value in sorted(ended.metrics.items())},
        )
