"""What the rounds of both models share: phases, data, publishing, promoting, and keeping refused candidates.

Every phase can be repeated. A round that was killed goes on in the phase that it had reached, with the same data, seed
and parent.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import redis
import structlog
import torch
from transformers.utils import logging as transformers_logging

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_client import RewardloopClient
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.assessment.checks import Check, checks_report
from rewardloop_trainer.data.pools.database import is_locked
from rewardloop_trainer.data.pools.pools import PoolLimits, RoundRange
from rewardloop_trainer.data.preferences import Record
from rewardloop_trainer.data.replay import POOLS, Replay, load_judged, load_replay, load_trained
from rewardloop_trainer.data.weights.trust import Trust, weigh_people
from rewardloop_trainer.erasure.learned import ERASURES_NOTE
from rewardloop_trainer.learning.run_control import NothingToLearnFrom
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.reports.page import publish_report, write_report
from rewardloop_trainer.reports.parts import Cell, Sample
from rewardloop_trainer.rounds.bulletin.mutes import muted_people
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.fresh_start import StartChoice, begun_start, fresh_records
from rewardloop_trainer.rounds.live_pointer import is_held, live_version
from rewardloop_trainer.rounds.pauses import Interrupted, ServerAway, Waiting
from rewardloop_trainer.rounds.publish import (
    PromotionRefused,
    code_version,
    data_range,
    promote,
    publish_once,
)
from rewardloop_trainer.rounds.round_trust import TrustAsked, show_crowd, trust_of_round
from rewardloop_trainer.settings import TrainSettings
from rewardloop_trainer.vocabulary import Outcome, Phase, Reason

log = structlog.get_logger()

_LOG_EVERY_S = 10.0
_HELD_S = 10.0
_KEPT_REPORTS = 50


class Refused(Exception):
    """Raised when the candidate may not be served. The arguments are the reasons."""


class ModelRound(ABC):
    """One round of a model. `run` goes on from the phase that the round has reached."""

    def __init__(
        self,
        settings: TrainSettings,
        store: ModelStore,
        ledger: Ledger,
        client: redis.Redis,
        server: RewardloopClient,
        metrics: TrainerMetrics,
        stop: threading.Event,
        current: CurrentRound,
    ) -> None:
        self.model = current.model
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._redis = client
        self._server = server
        self._metrics = metrics
        self._stop = stop
        self._current = current
        self._directory = settings.work_dir / "rounds" / f"{self.model}-{current.state.number}"
        self._refused = settings.work_dir / "refused" / self._directory.name
        self._version = self._directory / "version"
        self._logged_at = 0.0
        self._trust = Trust()
        self._worse: list[Sample] = []  # what the candidate is worse on

    def run(self) -> Outcome:
        """Run the phases that are left.

        Raises:
            Interrupted: If the process was asked to stop.
            ServerAway: If the server cannot do now what the round needs.
        """
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if self._settings.torch_threads:
            torch.set_num_threads(self._settings.torch_threads)
        if (self._refused / "reasons.json").exists():  # killed before the refusal was noted in the state
            return "refused"
        phases = {**self._phases(), "gated": self._publish, "published": self._promote}
        try:
            while (phase := self._current.state.phase) != "promoted":
                self._stop_if_asked()
                phases[phase]()
        except Refused as refusal:
            self._keep_refused(refusal.args)
            return "refused"
        except NothingToLearnFrom as error:
            self._keep_refused([Reason("no_data", str(error))])
            return "refused"
        shutil.rmtree(self._directory, ignore_errors=True)
        return "promoted"

    @abstractmethod
    def _phases(self) -> Mapping[Phase, Callable[[], None]]:
        """Return what is done in each phase before "gated", after which the candidate is in ``self._version``."""

    @abstractmethod
    def _manifest(self) -> Manifest:
        """Return the manifest of the candidate in ``self._version``."""

    @property
    @abstractmethod
    def _epochs(self) -> int:
        """Passes of the round over its data."""

    def _begin(self) -> str | None:
        """Fix the live version as the round's parent and return it; None if there is no version.

        Raises:
            Waiting: While a person's rollback holds the promotions of trainers.
        """
        now = self._current.state
        if now.parent:
            return now.parent
        held = is_held(self._redis, self._store, self.model)
        self._metrics.promotion_held.labels(model=self.model).set(held)
        if held:
            log.warning("a rollback holds this model: promote a version by hand to go on", model=self.model)
            raise Waiting(_HELD_S, "a rollback holds the model until a person promotes a version")
        parent = live_version(self._redis, self._store, self.model)
        self._current.reach(replace(now, parent=parent))
        return parent

    def _manifest_of_round(self, notes: Mapping[str, str]) -> Manifest:
        """Return a manifest with what the round alone says, and without what the model says."""
        now = self._current.state
        return Manifest(
            model=self.model,
            parent=now.parent,
            data=data_range(self._ledger, now.after_stream_id, now.until_stream_id, now.seed, self._aspect),
            metrics={**now.metrics, **self._replay.figures},
            seed=now.seed,
            code_version=code_version(),
            notes={"new_signals": str(now.new_signals), ERASURES_NOTE: str(now.erasures), **notes},
        )

    def _write_checks(self, checks: Sequence[Check]) -> None:
        """Write the report of the round's checks, which stays after the round."""
        title = f"{self.model}: the checks of round {self._current.state.number}"
        facts: dict[str, Cell] = {"live version": self._current.state.parent or "none"}
        report = checks_report(title, checks, facts)
        write_report(report, self._reports / "checks")
        publish_report(self._store.reports, "checks", report)
        self._drop_old_reports()

    def _drop_old_reports(self) -> None:
        by_age = sorted(self._reports.parent.glob(f"{self.model}-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        for old in by_age[:-_KEPT_REPORTS]:
            shutil.rmtree(old)

    @property
    def _reports(self) -> Path:
        """The directory in which what a reader may want to see of the round stays after it."""
        return self._settings.work_dir / "reports" / self._directory.name

    def _publish(self) -> None:
        manifest = self._manifest()

        def write(directory: Path) -> None:
            shutil.copytree(self._version, directory, dirs_exist_ok=True)

        published = publish_once(self._store, manifest, write, self._current.key, self._ledger.held)
        self._current.reach(replace(self._current.state, phase="published", version=published.version))
        log.info("published", model=self.model, version=published.version, parent=manifest.parent)

    def _promote(self) -> None:
        now = self._current.state
        if now.version is None:
            raise ValueError("a published round has a version")
        try:
            reason = f"trainer round {now.number}: {now.new_signals} new signals"
            with self._ledger.held():  # only checked: the call takes too long to hold the fence during it
                pass
            epoch = self._ledger.leader_epoch
            timeout_s = self._settings.promote_timeout_s
            promote(self._server, self.model, now.version, reason, timeout_s, epoch, now.parent)
        except PromotionRefused as error:
            raise Refused(Reason("not_promoted", f"the server refused version {now.version}: {error}")) from error
        self._reach("promoted")

    @property
    def _aspect(self) -> str:
        """The aspect of the signals that the model learns from. A policy learns from those of "reward"."""
        return REWARD if self.model == POLICY else self.model

    @cached_property
    def _replay(self) -> Replay:
        """The round's records, weighed by how far their people are trusted. None teaches the judge of policies."""
        now = self._current.state
        asked = RoundRange(self.model, now.after_stream_id, now.until_stream_id, now.seed, self._aspect)
        with self._pools_in_use():
            replay = load_replay(self._ledger, self._settings.work_dir / POOLS, asked, self._limits)
            self._trust = self._trust_in_people(replay.train)
        return replay.mapped(self._weighed)

    def _trust_in_people(self, records: Sequence[Record]) -> Trust:
        """Return how far people are trusted in this round: the same, also after a restart in the middle of it."""
        asked = TrustAsked(
            self._settings.trust != "off",
            self._current.state.until_stream_id,
            partial(self._ask_model, records) if self._settings.trust == "auto" else None,
            partial(muted_people, self._redis),
        )
        show = partial(show_crowd, self._metrics, self._current)
        return trust_of_round(self._ledger, self._settings.work_dir, self._directory, asked, show)

    def _ask_model(self, records: Sequence[Record], weights: Trust) -> Mapping[str, float]:
        """Return what a model that learned from none of the people says of their choices, by signal.

        Only reward rounds ask one. What it said stays in the file of the crowd, for the rounds of policies, too.
        """
        return {}

    def _weighed(self, records: Sequence[Record]) -> tuple[Record, ...]:
        return tuple(weigh_people(records, self._trust))

    def _records_of_judge(self) -> tuple[Record, ...]:
        """The records that teach the judge of policies and nothing else: of this round and of all before it."""
        self._replay  # noqa: B018 - the pools take this round's signals first
        with self._pools_in_use():
            return self._weighed(load_judged(self._settings.work_dir / POOLS, self.model, self._limits))

    def _records_of_life(self, newest: int, older: int) -> Sequence[Record]:
        """Return what a start from the base learns of this round's and all earlier records (`fresh_records`)."""
        new = self._replay.new  # the pools take this round's signals first
        with self._pools_in_use():
            earlier = self._weighed(load_trained(self._settings.work_dir / POOLS, self.model, self._limits))
        return fresh_records((*earlier, *new), newest, older, self._current.state.seed)

    @contextmanager
    def _pools_in_use(self) -> Iterator[None]:
        """Raise `ServerAway` if a trainer that was overtaken and is stopped, or a person's tool, holds the pools."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if is_locked(error):
                raise ServerAway(f"{self._settings.work_dir / POOLS}: {error}") from error
            raise

    @property
    def _limits(self) -> PoolLimits:
        settings = self._settings
        has_judge = settings.policy_rounds and settings.policy.gate.judged_by == "own"
        return PoolLimits(
            heldout_share=settings.heldout_share,
            judge_share=settings.judge_share if has_judge and self._store.versions("policy") else 0.0,
            newest=settings.newest,
            replayed=settings.replayed,
            max_heldout=settings.max_heldout,
            max_judge=settings.max_judge,
            passes=settings.passes,
            epochs=self._epochs,
        )

    def _stop_if_asked(self) -> None:
        if self._stop.is_set():
            raise Interrupted

    @cached_property
    def _chosen_start(self) -> StartChoice:
        """Where the round starts: the same also after a restart in the middle of it, if the ledger lost signals."""
        now = self._current.state
        if now.start:
            return begun_start(self._store, self.model, now.parent, now.is_fresh, now.start)
        return self._choose_start()

    @abstractmethod
    def _choose_start(self) -> StartChoice:
        """Choose where a round starts that has not begun to train."""

    def _begin_training(self, chosen: StartChoice) -> None:
        """Note where the round starts, before it trains: one from the base is dear, and is not repeated in the next."""
        log.info("start of the round", version=chosen.version, fresh=chosen.is_fresh, reason=chosen.reason)
        self._current.reach(replace(self._current.state, is_fresh=chosen.is_fresh, start=chosen.reason))

    def _reach(self, phase: Phase, figures: Mapping[str, float] | None = None) -> None:
        now = self._current.state
        self._current.reach(replace(now, phase=phase, metrics={**now.metrics, **(figures or {})}))

    def _report(
        self,
        step: int,
        steps: int,
        loss: float,
        *,
        gradient_norm: float = math.nan,
        seconds: float = math.nan,
        **figures: float,
    ) -> None:
        """Report a training step to the metrics and, every few seconds, to the log."""
        self._metrics.stepped(self.model, loss, gradient_norm, seconds)
        self._current.stepped(step, steps, {"loss": loss, "gradient_norm": gradient_norm, **figures})
        if time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            rounded = {name: round(value, 3) for name, value in figures.items()}
            log.info("training", model=self.model, step=f"{step}/{steps}", loss=round(loss, 4), **rounded)

    def _keep_refused(self, reasons: Sequence[object]) -> None:
        """Move the candidate aside with the reasons, and delete the oldest of those that were kept."""
        self._metrics.refused(self.model, reasons)
        self._current.refused(reasons, self._worse)
        log.warning("candidate refused", model=self.model, round=self._current.state.number, reasons=reasons)
        self._directory.mkdir(parents=True, exist_ok=True)
        about = {"reasons": [str(r) for r in reasons], "metrics": dict(self._current.state.metrics)}
        (self._directory / "reasons.json").write_text(json.dumps(about, indent=2))
        self._refused.parent.mkdir(parents=True, exist_ok=True)
        self._directory.rename(self._refused)
