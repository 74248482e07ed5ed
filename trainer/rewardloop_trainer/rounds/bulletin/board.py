"""What the trainer says of its models and rounds now. Rounds write on it, and `publishing` sends it to Redis."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from rewardloop.formats import keys
from rewardloop.formats.erasing.erasures import Erasures
from rewardloop.v1 import operations_pb2
from rewardloop_trainer.erasure.shown_texts import drop_erased_examples, drop_erased_people
from rewardloop_trainer.reports.parts import Sample
from rewardloop_trainer.rounds.bulletin.curves import Curves
from rewardloop_trainer.rounds.bulletin.examples import example_messages, shortened
from rewardloop_trainer.rounds.trainer_state import RoundState
from rewardloop_trainer.vocabulary import ModelName, RoundEnd, rule_of

# The figures of gates that say how many more held-out prompts they need.
_NEEDED = ("gate_needed", "gate_judge_needed")


class Board:
    """Everything on it may be read and changed from any thread. It does no I/O.

    Args:
        clock: Returns Unix seconds.

    Attributes:
        publishing: Held by whoever takes what has changed, until it is in Redis or put back.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.publishing = threading.Lock()
        self._lock = threading.Lock()
        self._trainer = operations_pb2.TrainerStatus()
        self._models: dict[str, operations_pb2.TrainingStatus] = {}
        self._rounds: dict[str, operations_pb2.Round] = {}  # the latest of each model
        self._curves: dict[str, Curves] = {}
        self._known: dict[str, operations_pb2.Round] = {}  # of the process before, by field
        self._changed: set[str] = set()  # models whose latest round is to be published
        self._crowd: operations_pb2.Crowd | None = None
        self._crowd_began_at = 0.0  # when the round began that knows it
        self._erasures = Erasures()

    def lead(self, trainer_id: str) -> None:
        """Say whose rounds these are."""
        with self._lock:
            self._trainer.trainer_id = trainer_id

    def remember(self, known: Iterable[operations_pb2.Round]) -> None:
        """Go on with what earlier processes published of rounds."""
        with self._lock:
            for each in sorted(known, key=lambda each: each.start_time.ToNanoseconds()):
                self._known[keys.round_field(each.model, each.trainer_id, each.number)] = each
                if each.outcome:
                    self._model(each.model).gate_needs_prompts = _needed(each.figures)

    def counted(
        self, model: ModelName, *, new: int, least: int, unread: int, interval_s: float, ended_at: float
    ) -> None:
        """Note how many new signals a model has and needs, and when its last round ended (0: none has)."""
        with self._lock:
            status = self._model(model)
            status.new_signals, status.least_signals, status.unread_signals = max(0, new), least, unread
            status.longest_interval_s = interval_s
            if ended_at:
                status.last_round_end_time.CopyFrom(_stamp(ended_at))

    def archived(self, rows: int) -> None:
        """Note the rows of the ledger."""
        with self._lock:
            self._trainer.ledger_rows = rows

    def reached(self, model: ModelName, state: RoundState) -> None:
        """Note what the round under way has reached."""
        with self._lock:
            self._model(model).phase = state.phase
            current = self._round(model, state.number)
            current.phase = state.phase
            current.start_time.CopyFrom(_stamp(state.started_at))
            current.new_signals, current.signals = max(0, state.new_signals), max(0, state.signals)
            current.parent_version, current.version = state.parent or "", state.version or ""
            current.failures = state.failures
            _fill(current.figures, state.metrics)
            self._changed.add(model)

    def stepped(self, model: ModelName, number: int, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Note a step of training."""
        with self._lock:
            current = self._round(model, number)
            current.step, current.steps = step, steps
            self._curves[model].add(step, figures)
            self._changed.add(model)

    def refused(self, model: ModelName, number: int, reasons: Sequence[object], examples: Sequence[Sample]) -> None:
        """Note why the candidate is refused, and on what it is worse."""
        with self._lock:
            current = self._round(model, number)
            del current.reasons[:], current.examples[:]
            current.reasons.extend(
                operations_pb2.RefusalReason(rule=rule_of(each), text=shortened(str(each))) for each in reasons
            )
            current.examples.extend(example_messages(examples))
            drop_erased_examples(current, self._erasures)
            self._changed.add(model)

    def failed(self, model: ModelName, number: int, error: BaseException) -> None:
        """Note an attempt that failed."""
        with self._lock:
            self._round(model, number).error = shortened(f"{type(error).__name__}: {error}")
            self._changed.add(model)

    def paused(self, model: ModelName, reason: str, until: float) -> None:
        """Note that a round waits until a time, in Unix seconds."""
        with self._lock:
            status = self._model(model)
            status.pause_reason = shortened(reason)
            status.pause_end_time.CopyFrom(_stamp(until))

    def resumed(self, model: ModelName) -> None:
        """Note that a round goes on."""
        with self._lock:
            status = self._model(model)
            status.ClearField("pause_reason")
            status.ClearField("pause_end_time")

    def ended(self, model: ModelName, state: RoundState, outcome: RoundEnd) -> None:
        """Note how a round ended."""
        self.reached(model, state)
        self.resumed(model)
        with self._lock:
            current, status = self._round(model, state.number), self._model(model)
            current.outcome = outcome
            current.end_time.CopyFrom(_stamp(self._clock()))
            status.phase = "idle"
            status.gate_needs_prompts = _needed(current.figures)
            self._changed.add(model)

    def knows(self, crowd: operations_pb2.Crowd, began_at: float) -> None:
        """Note what a round that began at a time, in Unix seconds, knows of people."""
        with self._lock:
            drop_erased_people(crowd, self._erasures, began_at)
            self._crowd, self._crowd_began_at = crowd, began_at

    def erase(self, erasures: Erasures) -> None:
        """Forget what is erased, and take none of it from rounds that have begun before.

        It waits until what was taken from the board is published, so that who erases from Redis afterwards finds it.
        """
        with self.publishing, self._lock:
            self._erasures = erasures
            for each in (*self._rounds.values(), *self._known.values()):
                drop_erased_examples(each, erasures)
            if self._crowd is not None:
                drop_erased_people(self._crowd, erasures, self._crowd_began_at)

    def trainer(self) -> operations_pb2.TrainerStatus:
        """Return what the trainer says of itself now."""
        with self._lock:
            status = operations_pb2.TrainerStatus()
            status.CopyFrom(self._trainer)
            status.models.extend(self._models[name] for name in sorted(self._models))
            status.report_time.CopyFrom(_stamp(self._clock()))
            return status

    def take_changed(self) -> tuple[dict[str, operations_pb2.Round], operations_pb2.Crowd | None]:
        """Return the rounds that have changed since the last call, by field, and the people if they have."""
        with self._lock:
            rounds = {}
            for model in self._changed:
                current = operations_pb2.Round()
                current.CopyFrom(self._rounds[model])
                current.curves.extend(self._curves[model].messages())
                rounds[keys.round_field(model, current.trainer_id, current.number)] = current
            self._changed.clear()
            crowd, self._crowd = self._crowd, None
            return rounds, crowd

    def put_back(self, rounds: Mapping[str, operations_pb2.Round], crowd: operations_pb2.Crowd | None) -> None:
        """Return what could not be published, so that it is tried again unless it has changed since."""
        with self._lock:
            for each in rounds.values():
                if self._rounds[each.model].number == each.number:
                    self._changed.add(each.model)
            self._crowd = self._crowd or crowd

    def _model(self, model: ModelName) -> operations_pb2.TrainingStatus:
        return self._models.setdefault(model, operations_pb2.TrainingStatus(model=model, phase="idle"))

    def _round(self, model: ModelName, number: int) -> operations_pb2.Round:
        """Return the message of the round: the one of the process before, if that has published it."""
        found = self._rounds.get(model)
        if found is None or found.number != number:
            trainer_id = self._trainer.trainer_id
            found = self._known.pop(keys.round_field(model, trainer_id, number), None) or operations_pb2.Round(
                model=model, trainer_id=trainer_id, number=number
            )
            self._curves[model] = Curves(found.curves)
            del found.curves[:]
            self._rounds[model] = found
        return found


def _fill(figures: MutableMapping[str, float], found: Mapping[str, float]) -> None:
    figures.clear()
    figures.update({name: value for name, value in found.items() if math.isfinite(value)})


def _needed(figures: Mapping[str, float]) -> int:
    return int(max(figures.get(name, 0.0) for name in _NEEDED))


def _stamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
