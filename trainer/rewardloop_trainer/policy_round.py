"""One policy round: the ledger's range -> DPO -> rollouts -> rewards -> gate -> publish -> promote.

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
from typing import Any

import redis
import structlog
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from rewardloop.formats.store import MANIFEST, Manifest, ModelStore
from rewardloop.formats.text import Encoder, TextFormat
from rewardloop_client import DeadlineExceeded, Overloaded, RewardloopClient, Unavailable
from rewardloop_trainer.ledger import Ledger
from rewardloop_trainer.loop import Interrupted, Outcome, RoundTrack
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.policy_gate import Verdict
from rewardloop_trainer.policy_train import PolicyProgress, TrainingStopped, train_policy
from rewardloop_trainer.policy_verdict import verdict
from rewardloop_trainer.preferences import Pair, pairs_of
from rewardloop_trainer.publish import (
    PromotionRefused,
    ServerAway,
    code_version,
    data_range,
    live_version,
    promote,
    publish_once,
)
from rewardloop_trainer.replay import Replay, load_replay
from rewardloop_trainer.settings import TrainSettings
from rewardloop_trainer.state import Phase

log = structlog.get_logger()

_LOG_EVERY_S = 10.0
_KEPT_REFUSED = 5
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", MANIFEST)


class _Refused(Exception):
    """The candidate is not to be served; the arguments are the reasons."""


class PolicyRound:
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
        self._directory = settings.work_dir / "rounds" / f"policy-{track.now.number}"
        self._refused = settings.work_dir / "refused" / self._directory.name
        self._trained = self._directory / "version"
        self._logged_at = 0.0

    def run(self) -> Outcome:
        """Raises `Interrupted` when asked to stop, `ServerAway` where the server is what the round waits for."""
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if self._settings.torch_threads:
            torch.set_num_threads(self._settings.torch_threads)
        steps: Mapping[Phase, Callable[[], None]] = {
            "training": self._train,
            "trained": self._judge,
            "gated": self._publish,
            "published": self._promote,
        }
        if (self._refused / "reasons.json").exists():  # killed between the refusal and its note in the state
            return "refused"
        try:
            while (phase := self._track.now.phase) != "promoted":
                self._stop_if_asked()
                steps[phase]()
        except _Refused as refusal:
            self._keep_refused(refusal.args)
            return "refused"
        shutil.rmtree(self._directory, ignore_errors=True)
        return "promoted"

    def _train(self) -> None:
        now = self._track.now
        parent = now.parent or live_version(self._redis, self._store, "policy")
        if parent is None:
            raise _Refused("the store has no policy to start from: export one")
        self._track.reach(replace(now, parent=parent))
        pairs = pairs_of(self._replay.train)
        if not pairs:
            raise _Refused("no signal of a training prompt compares different texts")
        if not self._trained.exists():
            self._learn(pairs)
        figures = json.loads((self._directory / "figures.json").read_text())
        self._reach("trained", figures)

    def _learn(self, pairs: Sequence[Pair]) -> None:
        """Train the live version's weights, and leave a whole version directory."""
        model = _load(self._parent_directory)
        try:
            outcome = train_policy(
                model,
                self._encoder(),
                pairs,
                pairs_of(self._replay.heldout),
                self._settings.policy.model_copy(update={"seed": self._track.now.seed}),
                self._directory / "checkpoints",
                self._report,
                self._stop.is_set,
            )
        except TrainingStopped as error:
            raise Interrupted from error
        (self._directory / "figures.json").parent.mkdir(parents=True, exist_ok=True)
        (self._directory / "figures.json").write_text(json.dumps(dict(outcome.figures)))
        partial = self._directory / ".writing-version"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self._parent_directory, partial, ignore=shutil.ignore_patterns(*_WEIGHTS))
        model.save_pretrained(partial)
        partial.rename(self._trained)

    def _judge(self) -> None:
        now = self._track.now
        try:
            verdict = self._verdict()
        except (Unavailable, Overloaded, DeadlineExceeded) as error:
            raise ServerAway(f"no rewards: {error}") from error
        self._track.reach(replace(now, metrics={**now.metrics, **verdict.figures}))
        if not verdict.passed:
            raise _Refused(*verdict.reasons)
        self._reach("gated")

    def _verdict(self) -> Verdict:
        return verdict(
            _load(self._trained),
            _load(self._parent_directory),
            self._encoder(),
            self._replay.heldout,
            self._server,
            self._settings.policy,
            seed=self._track.now.seed,
            on_batch=self._stop_if_asked,
        )

    def _publish(self) -> None:
        now = self._track.now
        parent = self._store.manifest("policy", str(now.parent))
        manifest = Manifest(
            model="policy",
            parent=now.parent,
            data=data_range(self._ledger, now.after_stream_id, now.until_stream_id, now.seed),
            metrics=now.metrics,
            text_format=parent.text_format,
            max_length=parent.max_length,
            base=parent.base,
            seed=now.seed,
            code_version=code_version(),
            notes={"new_signals": str(now.new_signals), "method": f"dpo-{self._settings.policy.loss}"},
        )

        def write(directory: Path) -> None:
            shutil.copytree(self._trained, directory, dirs_exist_ok=True)

        published = publish_once(self._store, manifest, write, self._track.key)
        self._track.reach(replace(now, phase="published", version=published.version))
        log.info("published", model="policy", version=published.version, parent=manifest.parent)

    def _promote(self) -> None:
        now = self._track.now
        if now.version is None:
            raise ValueError("a published round has a version")
        try:
            reason = f"trainer round {now.number}: {now.new_signals} new signals"
            promote(self._server, "policy", now.version, reason, self._settings.promote_timeout_s)
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

    @cached_property
    def _parent_directory(self) -> Path:
        return self._store.fetch("policy", str(self._track.now.parent))

    def _encoder(self) -> Encoder:
        manifest = self._store.manifest("policy", str(self._track.now.parent))
        tokenizer = Tokenizer.from_file(str(self._parent_directory / "tokenizer.json"))
        return Encoder(tokenizer, TextFormat.from_json(manifest.text_format), manifest.max_length)

    def _stop_if_asked(self) -> None:
        if self._stop.is_set():
            raise Interrupted

    def _reach(self, phase: Phase, figures: Mapping[str, float] | None = None) -> None:
        now = self._track.now
        self._track.reach(replace(now, phase=phase, metrics={**now.metrics, **(figures or {})}))

    def _report(self, progress: PolicyProgress) -> None:
        self._metrics.loss.labels(model="policy").set(progress.figures.loss)
        if time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            log.info(
                "training",
                model="policy",
                step=f"{progress.step}/{progress.steps}",
                loss=round(progress.figures.loss, 4),
                accuracy=round(progress.figures.accuracy, 3),
                margin=round(progress.figures.margin, 3),
                kl=round(progress.figures.kl, 3),
            )

    def _keep_refused(self, reasons: Sequence[object]) -> None:
        """Move the candidate aside with the reasons; the oldest ones kept make room."""
        log.warning("candidate refused", model="policy", round=self._track.now.number, reasons=reasons)
        self._directory.mkdir(parents=True, exist_ok=True)
        about = {"reasons": [str(r) for r in reasons], "metrics": dict(self._track.now.metrics)}
        (self._directory / "reasons.json").write_text(json.dumps(about, indent=2))
        self._refused.parent.mkdir(parents=True, exist_ok=True)
        self._directory.rename(self._refused)
        kept = sorted(self._refused.parent.glob("policy-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        for old in kept[:-_KEPT_REFUSED]:
            shutil.rmtree(old)


def _load(directory: Path) -> Any:
    """A causal LM in evaluation mode, in float32: DPO's steps are lost in half precision."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
