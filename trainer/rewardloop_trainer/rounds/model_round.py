"""What the rounds of both models share: phases, data, publishing, promoting, and keeping refused candidates.

Every phase can be repeated. A round that was killed goes on in the phase that it had reached, with the same data, seed
and parent.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import redis
import structlog
import torch
from transformers.utils import logging as transformers_logging

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_client import RewardloopClient
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.data.judge_share import of_judge, of_others
from rewardloop_trainer.data.preferences import Record
from rewardloop_trainer.data.replay import Replay, load_replay
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.pauses import Interrupted
from rewardloop_trainer.rounds.publish import (
    PromotionRefused,
    code_version,
    data_range,
    live_version,
    promote,
    publish_once,
)
from rewardloop_trainer.settings import TrainSettings
from rewardloop_trainer.vocabulary import ModelName, Outcome, Phase, Reason

log = structlog.get_logger()

_LOG_EVERY_S = 10.0
_KEPT_REFUSED = 5
# The newest signals of which the judge of policies learns its share.
_NEWEST_OF_JUDGE = 100_000


class Refused(Exception):
    """Raised when the candidate may not be served. The arguments are the reasons."""


class ModelRound(ABC):
    """One round of ``model``. `run` goes on from the phase that the round has reached."""

    model: ClassVar[ModelName]

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
        shutil.rmtree(self._directory, ignore_errors=True)
        return "promoted"

    @abstractmethod
    def _phases(self) -> Mapping[Phase, Callable[[], None]]:
        """Return what is done in each phase before "gated", after which the candidate is in ``self._version``."""

    @abstractmethod
    def _manifest(self) -> Manifest:
        """Return the manifest of the candidate in ``self._version``."""

    def _begin(self) -> str | None:
        """Fix the live version as the round's parent and return it; None if there is no version."""
        now = self._current.state
        parent = now.parent or live_version(self._redis, self._store, self.model)
        self._current.reach(replace(now, parent=parent))
        return parent

    def _manifest_of_round(self, notes: Mapping[str, str]) -> Manifest:
        """Return a manifest with what the round alone says, and without what the model says."""
        now = self._current.state
        return Manifest(
            model=self.model,
            parent=now.parent,
            data=data_range(self._ledger, now.after_stream_id, now.until_stream_id, now.seed),
            metrics=now.metrics,
            seed=now.seed,
            code_version=code_version(),
            notes={"new_signals": str(now.new_signals), **notes},
        )

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
            promote(self._server, self.model, now.version, reason, self._settings.promote_timeout_s, epoch)
        except PromotionRefused as error:
            raise Refused(Reason("not_promoted", f"the server refused version {now.version}: {error}")) from error
        self._reach("promoted")

    @cached_property
    def _replay(self) -> Replay:
        """The round's records, without those that teach the judge of policies."""
        found = self._all_records(self._settings.newest, self._settings.replayed)
        return replace(found, train=of_others(found.train, self._judge_share))

    def _records_of_judge(self) -> tuple[Record, ...]:
        """The records of the judge's own prompts: all that the ledger has, up to a bound."""
        return of_judge(self._all_records(_NEWEST_OF_JUDGE, 0).train, self._judge_share)

    @property
    def _judge_share(self) -> float:
        """The share of training prompts that are the judge's; 0 if no policy is judged by a judge of our own."""
        settings = self._settings
        is_needed = settings.policy_rounds and settings.policy.gate.judged_by == "own"
        return settings.judge_share if is_needed and self._store.versions("policy") else 0.0

    def _all_records(self, newest: int, replayed: int) -> Replay:
        settings, now = self._settings, self._current.state
        return load_replay(
            self._ledger,
            now.until_stream_id,
            heldout_share=settings.heldout_share,
            newest=newest,
            replayed=replayed,
            max_heldout=settings.max_heldout,
            seed=now.seed,
        )

    def _stop_if_asked(self) -> None:
        if self._stop.is_set():
            raise Interrupted

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
        if time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            rounded = {name: round(value, 3) for name, value in figures.items()}
            log.info("training", model=self.model, step=f"{step}/{steps}", loss=round(loss, 4), **rounded)

    def _keep_refused(self, reasons: Sequence[object]) -> None:
        """Move the candidate aside with the reasons, and delete the oldest of those that were kept."""
        self._metrics.refused(self.model, reasons)
        log.warning("candidate refused", model=self.model, round=self._current.state.number, reasons=reasons)
        self._directory.mkdir(parents=True, exist_ok=True)
        about = {"reasons": [str(r) for r in reasons], "metrics": dict(self._current.state.metrics)}
        (self._directory / "reasons.json").write_text(json.dumps(about, indent=2))
        self._refused.parent.mkdir(parents=True, exist_ok=True)
        self._directory.rename(self._refused)
        kept = sorted(self._refused.parent.glob(f"{self.model}-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        for old in kept[:-_KEPT_REFUSED]:
            shutil.rmtree(old)
