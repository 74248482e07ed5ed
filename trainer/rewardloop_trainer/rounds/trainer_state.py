"""What each model has learned from and how far its present round has come, in a file that outlives the process.

The file is replaced atomically. A trainer that was killed finds in it the round that was under way, with the same data
range, seed and candidate, and goes on from the last finished phase.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from rewardloop_trainer.archive.fence import Fence
from rewardloop_trainer.archive.identity import OtherArchive, identify, identity_of
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.segment_files import order
from rewardloop_trainer.vocabulary import PHASES, Phase, RoundEnd

log = structlog.get_logger()

FORMAT_VERSION = 1


class CorruptState(Exception):
    """Raised when the state file cannot be read. The file is left as it is, for a person to look at."""


@dataclass(frozen=True, slots=True)
class RoundState:
    """One attempt to make a better version.

    Attributes:
        number: Counts the model's rounds from 1.
        phase: The phase that the round has reached: the step that it finished last, or "training" before the first.
        after_stream_id: The last stream id of the last finished round, "" for none. Later rows are new. Together with
            ``until_stream_id`` it names the state of the pools that the round learns from (`data.pools.pools`).
        until_stream_id: The round learns from the ledger up to and including this stream id.
        signals: How many rows the ledger has up to there.
        new_signals: How many of them are new.
        seed: The seed of everything random in the round.
        parent: The live version that the round starts from.
        version: The version that the round published.
        failures: How often the round raised an exception.
        starts: How many processes began to work on the present phase and did not return from it, the one that works on
            it now included.
        started_at: When the round began, in Unix seconds.
        erasures: How many erasures the ledger had behind it when the round began. Signals of a later one may have been
            learned in the round.
        metrics: Figures of training and gate.
        is_fresh: Whether it has begun to train from the base.
        start: Why it trains from the weights that it trains from; "" before that is chosen.
    """

    number: int
    phase: Phase
    after_stream_id: str
    until_stream_id: str
    signals: int
    new_signals: int
    seed: int
    parent: str | None = None
    version: str | None = None
    failures: int = 0
    starts: int = 0
    started_at: float = 0.0
    erasures: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_fresh: bool = False
    start: str = ""

    @property
    def has_trained(self) -> bool:
        """Whether the round has trained, so that there is a candidate."""
        return self.phase != "training"


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the trainer knows of one model.

    Attributes:
        learned_through: The last stream id of the last finished round, whatever its outcome; "" before the first.
        rounds: How many rounds have ended.
        ended_at: When the last one ended, in Unix seconds; 0 before the first.
        round: The round under way, if any.
        fresh_until: The ``until_stream_id`` of the last round that trained from the base, also if its version was
            refused, or went live and was rolled back; "" for none. A round that was refused because it had nothing to
            train on is no such round. The place is kept and no number of signals, because a ledger can lose some.
    """

    learned_through: str = ""
    rounds: int = 0
    ended_at: float = 0.0
    round: RoundState | None = None
    fresh_until: str = ""

    def finished(self, ended_at: float, outcome: RoundEnd) -> ModelState:
        """Return the state after the round under way has ended."""
        ended = self.round
        if ended is None:
            raise ValueError("no round is under way")
        is_fresh = ended.is_fresh and (outcome != "refused" or ended.has_trained)
        fresh_until = ended.until_stream_id if is_fresh else self.fresh_until
        return ModelState(ended.until_stream_id, self.rounds + 1, ended_at, None, fresh_until)


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The state of all models.

    Attributes:
        trainer_id: Tells this work directory's rounds from another's in a shared store.
        models: What is known of each model, by name.
        archive_id: The archive whose signals they have learned; "" if no trainer has noted it yet.
        archive_place: Where that archive was when a trainer last led.
    """

    trainer_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    models: Mapping[str, ModelState] = field(default_factory=dict)
    archive_id: str = ""
    archive_place: str = ""

    def of(self, model: str) -> ModelState:
        return self.models.get(model, ModelState())

    def with_model(self, model: str, state: ModelState) -> TrainerState:
        return replace(self, models={**self.models, model: state})

    def round_key(self, model: str, number: int) -> str:
        """Return what ``notes["round"]`` says in the manifest of a version that this round publishes."""
        return f"{self.trainer_id}/{model}/{number}"


class StateFile:
    """Reads and atomically replaces ``<work_dir>/state.json``."""

    def __init__(self, work_dir: Path, fence: Fence | None = None) -> None:
        self.path = work_dir / "state.json"
        self._fence = fence

    def read(self) -> TrainerState:
        """Read the state, which is a fresh one if there is no file. Raises `CorruptState`."""
        try:
            raw = json.loads(self.path.read_text())
            if raw["format_version"] != FORMAT_VERSION:
                raise CorruptState(f"{self.path}: format version {raw['format_version']!r} is not {FORMAT_VERSION}")
            models = {name: _model(m) for name, m in raw["models"].items()}
            return TrainerState(raw["trainer_id"], models, raw.get("archive_id", ""), raw.get("archive_place", ""))
        except FileNotFoundError:
            return TrainerState()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptState(f"{self.path}: {error!r}") from error

    def hold_to(self, ledger: Ledger) -> None:
        """Hold this work directory to one archive, which keeps its id wherever it is copied or moved.

        State, pools and what is known of people are of that archive's signals. With another one, these would be taken
        for signals that are there, and the signals that Redis has handed over to the archive before would be missed.

        Raises:
            OtherArchive: If the state is of another archive. Nothing is written then.
            CorruptState: If the state cannot be read.
            Fenced: If another trainer leads.
        """
        state, files = self.read(), ledger.small_files
        has_learned = any(known.learned_through for known in state.models.values())
        known = identity_of(files)
        is_other = known != state.archive_id if state.archive_id else has_learned and ledger.row_count == 0
        if is_other:
            own = f"the archive at {state.archive_place}" if state.archive_place else "another archive"
            what = "is not that one" if ledger.row_count else "is empty"
            raise OtherArchive(
                f"{self.path.parent} belongs to {own}, and {files.place} {what}: name its archive, or give this one a "
                "work directory of its own"
            )
        archive_id = identify(files)
        if (archive_id, files.place) != (state.archive_id, state.archive_place):
            self.write(replace(state, archive_id=archive_id, archive_place=files.place))

    def keep_within(self, last_stream_id: str) -> None:
        """Let no model have learned more than the ledger has, whose last row is at ``last_stream_id``; "" for none.

        A ledger that was restored from a copy may end before the state does. Without this, signals that come next would
        count as learned. Raises `CorruptState` and `Fenced`.
        """
        state = self.read()
        for model, known in state.models.items():
            if order(known.learned_through or "0") > order(last_stream_id or "0"):
                log.warning(
                    "the ledger ends before what the model has learned: going on from its end",
                    model=model,
                    learned_through=known.learned_through,
                    ledger_ends=last_stream_id,
                )
                state = state.with_model(model, replace(known, learned_through=last_stream_id))
                self.write(state)

    def write(self, state: TrainerState) -> None:
        """Replace the state, which is on disk when this returns. Raises `Fenced` if another trainer leads."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Each leader has a file of its own, because a leader that was stopped while it wrote may write on.
        temporary = self.path.with_suffix(f".writing-{self._fence.epoch}" if self._fence else ".writing")
        with temporary.open("w") as file:
            json.dump({"format_version": FORMAT_VERSION, **asdict(state)}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        with nullcontext() if self._fence is None else self._fence.held():
            os.replace(temporary, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _model(raw: Mapping[str, Any]) -> ModelState:
    now = raw["round"]
    if now is not None and now["phase"] not in PHASES:
        raise CorruptState(f"unknown phase {now['phase']!r}")
    # A build before the place was kept noted a number of signals, which says nothing of those that are there now.
    known = {name: value for name, value in raw.items() if name != "fresh_refused"}
    return ModelState(**{**known, "round": None if now is None else RoundState(**now)})
