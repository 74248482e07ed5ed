"""One reward round: the ledger's range -> train -> export -> gate -> calibrate -> publish -> promote.

Each arrow ends in a phase of the state file, and each is repeatable: a round that was killed goes on in the phase
that it had reached, with the same data, seed and parent.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import redis
import structlog
import torch
from transformers.utils import logging as transformers_logging

from rewardloop.formats.store import Manifest, ModelStore, Trunk
from rewardloop.formats.text import Encoder
from rewardloop_client import RewardloopClient
from rewardloop_trainer.calibrate import anchor_logits, fit_calibration, fit_length_slope, fixed_anchors
from rewardloop_trainer.ledger import Ledger
from rewardloop_trainer.loop import Interrupted, Outcome, RoundTrack
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.preferences import Pair, pairs_of
from rewardloop_trainer.publish import (
    PromotionRefused,
    code_version,
    data_range,
    live_version,
    promote,
    publish_once,
)
from rewardloop_trainer.replay import Replay, load_replay
from rewardloop_trainer.reward_average import train_averaged
from rewardloop_trainer.reward_batches import encode_records
from rewardloop_trainer.reward_evaluate import log_length_ratios, pair_margins
from rewardloop_trainer.reward_export import Exported, Trial, export_candidate, is_delta
from rewardloop_trainer.reward_gate import gate
from rewardloop_trainer.reward_lora import LORA, as_delta, has_lora, load_delta, save_delta, with_lora
from rewardloop_trainer.reward_model import RewardModel
from rewardloop_trainer.reward_start import Start, start_from
from rewardloop_trainer.reward_train import Progress, TrainingStopped
from rewardloop_trainer.settings import TrainSettings
from rewardloop_trainer.state import Phase

log = structlog.get_logger()

_LOG_EVERY_S = 10.0
_PARITY_RECORDS = 32
_CALIBRATION_RECORDS = 200
_EXPORTED = "exported.json"
_KEPT_REFUSED = 5
_SLOPE_PAIRS = 200


class _Refused(Exception):
    """The candidate is not to be served; the arguments are the reasons."""


class RewardRound:
    """Runs one round from the phase that its track is in."""

    def __init__(
        self,
        settings: TrainSettings,
        store: ModelStore,
        ledger: Ledger,
        client: redis.Redis,
        server: RewardloopClient,
        metrics: TrainerMetrics,
        stop: threading.Event,
        track: RoundTrack,
    ) -> None:
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._redis = client
        self._server = server
        self._metrics = metrics
        self._stop = stop
        self._track = track
        self._directory = settings.work_dir / "rounds" / f"reward-{track.now.number}"
        self._refused = settings.work_dir / "refused" / self._directory.name
        self._logged_at = 0.0

    def run(self) -> Outcome:
        """Raises `Interrupted` when asked to stop, `ServerAway` where only the promotion is left to try again."""
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if self._settings.torch_threads:
            torch.set_num_threads(self._settings.torch_threads)
        steps: Mapping[Phase, Callable[[], None]] = {
            "training": self._train,
            "trained": self._export,
            "exported": self._judge,
            "gated": self._publish,
            "published": self._promote,
        }
        if (self._refused / "reasons.json").exists():  # killed between the refusal and its note in the state
            return "refused"
        try:
            while (phase := self._track.now.phase) != "promoted":
                if self._stop.is_set():
                    raise Interrupted
                steps[phase]()
        except _Refused as refusal:
            self._keep_refused(refusal.args)
            return "refused"
        shutil.rmtree(self._directory, ignore_errors=True)
        return "promoted"

    def _train(self) -> None:
        now = self._track.now
        parent = now.parent or live_version(self._redis, self._store, "reward")
        self._track.reach(replace(now, parent=parent))
        if not self._replay.train:
            raise _Refused("no signal of a training prompt compares different texts")
        trained = self._directory / "trained"
        if not trained.exists():
            start = self._start()
            settings = self._settings.reward.model_copy(update={"seed": now.seed})
            if makes_delta := is_delta(start, settings):
                as_delta(start.model, settings.lora)
            else:
                if settings.delta:
                    log.info("the live graph takes no such adapters: this round publishes a whole version that does")
                start.model.merge_lora()
                if settings.method == "lora":
                    with_lora(start.model, settings.lora)
            try:
                outcome = train_averaged(
                    start.model,
                    start.encoder,
                    self._replay.train,
                    self._replay.heldout,
                    settings,
                    self._directory / "checkpoints",
                    self._report,
                    self._stop.is_set,
                )
            except TrainingStopped as error:
                raise Interrupted from error

            def write(directory: Path) -> None:
                if makes_delta:
                    save_delta(start.model, directory)
                else:
                    start.model.merge_lora()
                    start.model.save(directory)
                (directory / "figures.json").write_text(json.dumps(dict(outcome.figures)))

            _whole(trained, write)
        figures = json.loads((trained / "figures.json").read_text())
        self._reach("trained", figures)

    def _export(self) -> None:
        start, model = self._start(), self._trained()
        found: list[Exported] = []

        def write(directory: Path) -> None:
            trial = self._trial(model, start.encoder)
            found.append(export_candidate(model, start, self._settings.reward, trial, directory))

        _whole(self._directory / "version", write)
        (self._directory / _EXPORTED).write_text(found[0].to_json())
        self._reach("exported", found[0].figures)

    def _trial(self, model: RewardModel, encoder: Encoder) -> Trial:
        heldout, train = self._replay.heldout, self._replay.train
        tried = encode_records(encoder, (*heldout, *train)[:_PARITY_RECORDS]).examples
        calibration = encode_records(encoder, train[:_CALIBRATION_RECORDS]).examples
        pairs = pairs_of(heldout)
        slope = self._length_slope(model, encoder, pairs)
        return Trial(
            encoder,
            [s for example in tried for s in example.sequences],
            pairs,
            lambda: pair_margins(model, encoder, pairs, slope),
            [s for example in calibration for s in example.sequences],
            slope,
            self._track.now.seed,
        )

    def _judge(self) -> None:
        """Gate and calibration; the manifest of what passes is kept beside its files."""
        start, model, now = self._start(), self._trained(), self._track.now
        encoder, pairs = start.encoder, pairs_of(self._replay.heldout)
        slope, live_slope = self._length_slope(model, encoder, pairs), self._live_length_slope(now.parent)
        exported = Exported.from_json((self._directory / _EXPORTED).read_text())
        trunk = start.trunk.manifest if has_lora(model) and start.trunk else None
        verdict = gate(
            pairs,
            pair_margins(model, encoder, pairs, slope),
            pair_margins(start.model, encoder, pairs, live_slope) if start.directory else None,
            exported.parity,
            tolerance=self._settings.reward.gate_tolerance,
            seed=now.seed,
        )
        for side in ("candidate", "live"):
            if (accuracy := verdict.figures.get(f"gate_{side}_accuracy")) is not None:
                self._metrics.heldout_accuracy.labels(model="reward", side=side).set(accuracy)
        self._track.reach(replace(now, metrics={**now.metrics, **verdict.figures}))
        if reasons := (*verdict.reasons, *exported.reasons):
            raise _Refused(*reasons)
        anchors = fixed_anchors(self._settings.work_dir, self._replay.train)
        manifest = Manifest(
            model="reward",
            parent=now.parent,
            data=data_range(self._ledger, now.after_stream_id, now.until_stream_id, now.seed),
            metrics=self._track.now.metrics,
            calibration=fit_calibration(anchor_logits(model, encoder, anchors, slope), slope),
            text_format=encoder.format.to_json(),
            max_length=encoder.max_length,
            heads=model.heads.out_features,
            base=start.base,
            seed=now.seed,
            code_version=code_version(),
            notes={"new_signals": str(now.new_signals), **exported.notes},
            precision=exported.precision,
            trunk=Trunk(trunk.version, trunk.digest) if trunk else None,
        )
        (self._directory / "manifest.json").write_text(manifest.to_json())
        self._reach("gated")

    def _length_slope(self, model: RewardModel, encoder: Encoder, heldout: Sequence[Pair]) -> float:
        """What the candidate's scores give back of its preference for length."""
        control = self._settings.reward.length_control
        if control == 0:
            return 0.0
        pairs = heldout if len(heldout) >= _SLOPE_PAIRS else pairs_of(self._replay.train)[:_SLOPE_PAIRS]
        return fit_length_slope(pair_margins(model, encoder, pairs), log_length_ratios(encoder, pairs), control)

    def _live_length_slope(self, version: str | None) -> float:
        calibration = self._store.manifest("reward", version).calibration if version else None
        return calibration.length_slope if calibration else 0.0

    def _publish(self) -> None:
        manifest = Manifest.from_json((self._directory / "manifest.json").read_text())
        version = self._directory / "version"

        def write(directory: Path) -> None:
            shutil.copytree(version, directory, dirs_exist_ok=True)

        published = publish_once(self._store, manifest, write, self._track.key)
        self._track.reach(replace(self._track.now, phase="published", version=published.version))
        log.info("published", model="reward", version=published.version, parent=manifest.parent)

    def _promote(self) -> None:
        now = self._track.now
        if now.version is None:
            raise ValueError("a published round has a version")
        try:
            reason = f"trainer round {now.number}: {now.new_signals} new signals"
            promote(self._server, "reward", now.version, reason, self._settings.promote_timeout_s)
        except PromotionRefused as error:
            raise _Refused(f"the server refused version {now.version}: {error}") from error
        self._reach("promoted")

    @cached_property
    def _replay(self) -> Replay:
        settings, now = self._settings, self._track.now
        return load_replay(
            self._ledger,
            now.until_stream_id,
            heldout_share=settings.heldout_share,
            newest=settings.newest,
            replayed=settings.replayed,
            max_heldout=settings.max_heldout,
            seed=now.seed,
        )

    def _start(self) -> Start:
        now = self._track.now
        return start_from(self._store, now.parent, self._settings.reward, now.seed)

    def _trained(self) -> RewardModel:
        """The candidate; one that becomes a delta has its adapters on the trunk, not merged."""
        trained = self._directory / "trained"
        if not (trained / LORA).exists():
            return RewardModel.load(trained)
        trunk = self._start().trunk
        if trunk is None:
            raise ValueError("adapters are trained on a live version's trunk")
        return load_delta(trunk.model(), trained)

    def _reach(self, phase: Phase, figures: Mapping[str, float] | None = None) -> None:
        now = self._track.now
        self._track.reach(replace(now, phase=phase, metrics={**now.metrics, **(figures or {})}))

    def _report(self, progress: Progress) -> None:
        self._metrics.loss.labels(model="reward").set(progress.loss)
        if time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            log.info(
                "training",
                model="reward",
                step=f"{progress.step}/{progress.steps}",
                loss=round(progress.loss, 4),
                accuracy=round(progress.accuracy, 3),
                tokens_per_second=round(progress.tokens_per_second),
            )

    def _keep_refused(self, reasons: Sequence[object]) -> None:
        """Move the candidate aside with the reasons; the oldest ones kept make room."""
        log.warning("candidate refused", model="reward", round=self._track.now.number, reasons=reasons)
        self._directory.mkdir(parents=True, exist_ok=True)
        about = {"reasons": [str(r) for r in reasons], "metrics": dict(self._track.now.metrics)}
        (self._directory / "reasons.json").write_text(json.dumps(about, indent=2))
        self._refused.parent.mkdir(parents=True, exist_ok=True)
        self._directory.rename(self._refused)
        kept = sorted(self._refused.parent.glob("reward-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        for old in kept[:-_KEPT_REFUSED]:
            shutil.rmtree(old)


def _whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a directory that appears under its name only when it is complete."""
    partial = target.with_name(f".writing-{target.name}")
    for stale in (partial, target):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    partial.rename(target)
