"""One reward training run outside the daemon: rows -> train -> export -> gate -> ``OUT/version`` -> store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from rewardloop.formats.signatures import trusted_keys
from rewardloop.formats.store import Manifest, ModelStore, Trunk
from rewardloop_trainer.assessment.checks import Check, check_figures, checks_report
from rewardloop_trainer.assessment.reward_models.checks import check_models
from rewardloop_trainer.commands.by_hand import conclude
from rewardloop_trainer.commands.people import People
from rewardloop_trainer.commands.progress import Beginning, Stages
from rewardloop_trainer.commands.reward_train_settings import RewardTrainSettings
from rewardloop_trainer.data.base_path import check_base_path
from rewardloop_trainer.data.files.reward_rows import RewardData
from rewardloop_trainer.data.length_share import LengthShare
from rewardloop_trainer.data.preferences import Record, pairs_of, weighing
from rewardloop_trainer.data.replay import Replay
from rewardloop_trainer.data.validation import validation_part
from rewardloop_trainer.data.weights.source_weights import measure_sources, source_figures, weigh_sources
from rewardloop_trainer.data.weights.trust import TRUST, Trust, weigh_people
from rewardloop_trainer.evaluation.evidence import evidence_of, read_evidence
from rewardloop_trainer.evaluation.policy_judge import PolicyJudge
from rewardloop_trainer.evaluation.reward_gate import RewardGateRules, judge_reward
from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.export.candidate import Exported, Trial, export_candidate
from rewardloop_trainer.learning.model_load import check_machine
from rewardloop_trainer.learning.run_report import RunReport
from rewardloop_trainer.learning.run_rows import StepDone, last_means, read_steps
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.reports.page import write_report
from rewardloop_trainer.reward.anchors import ANCHORS, AnchorSet, anchors_of_round, write_anchors
from rewardloop_trainer.reward.average import measure_records, train_averaged
from rewardloop_trainer.reward.calibrate import calibrate_model
from rewardloop_trainer.reward.evaluate import fit_length_share, pair_margins
from rewardloop_trainer.reward.examples import encode_records
from rewardloop_trainer.reward.lora import has_lora
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import RewardStart, start_from
from rewardloop_trainer.reward.train import Progress
from rewardloop_trainer.rounds.publish import code_version
from rewardloop_trainer.rounds.reward_candidate import choose_weights, load_trained, save_trained
from rewardloop_trainer.rounds.round_trust import say_of_people

RUN = "run.json"
_TRIED = 32  # records on which the graph is compared with torch
_CALIBRATION = 200  # records on which the ranges of a quantised graph are measured
# The settings that change nothing about the weights: a run with others is the same run.
_ASIDE = {
    *("out", "data", "publish", "draw_every", "torch_threads", "log_format", "log_level", "signing_key"),
    *("trusted_keys", "device", "gradient_checkpointing", "micro_batch_tokens", "shard"),
}


class RewardTrainRun:
    """One run of the command. `train` is called in every process of torchrun, `conclude` in the first one alone."""

    def __init__(self, settings: RewardTrainSettings, data: RewardData, people: People, stages: Stages) -> None:
        """Take the settings, the signals, who gave them, and what says what the run does. Nothing is written yet.

        Raises:
            ValueError: If another run has written to the directory.
        """
        check_machine(settings)
        if settings.base:
            check_base_path(settings.base)
        self._settings, self._data, self._people, self._stages = settings, data, people, stages
        names = RewardHyperparameters.model_fields
        self._learning = RewardHyperparameters.model_validate({name: getattr(settings, name) for name in names})
        self._trained, self._version = settings.out / "trained", settings.out / "version"
        what = [settings.model_dump(mode="json", exclude=_ASIDE), data.sha256]
        self._id = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        run = settings.out / RUN
        if run.exists() and json.loads(run.read_text())["id"] != self._id:
            raise ValueError(f"{settings.out}: exists already, and not from this run: choose another --out")

    def train(self) -> None:
        """Train the model and write its weights. Raises ValueError if there is nothing to train on."""
        disable_progress_bar()  # type: ignore[no-untyped-call]
        if self._settings.torch_threads:
            torch.set_num_threads(self._settings.torch_threads)
        world, out = World(), self._settings.out
        if world.largest(float(self._trained.exists())):  # the first process has written it in an earlier call
            return
        if world.is_first:
            out.mkdir(parents=True, exist_ok=True)
            (out / RUN).write_text(json.dumps({"id": self._id}) + "\n")
        checkpoints = out / "checkpoints"
        on_start = Beginning(checkpoints, self._stages, "a linear fit" if self._learning.linear_start else "")
        self._stages(f"loading {self._settings.base or f'{self._settings.model} {self._settings.version}'}")
        start = self._start()
        makes_delta, settings = choose_weights(start, self._learning)
        report = None
        if world.is_first:
            report = RunReport(out / "report", draw_every=self._settings.draw_every, console=Console())

        def on_progress(done: Progress) -> None:
            if report is not None:
                report(_step_done(done))

        self._stages(f"weighing {len(self._data.records):,} signals")
        train, judged = self._records.train, self._records.heldout
        measured = measure_sources((*train, *judged))
        weighed = weighing(weigh_sources(train, measured, settings.source_floor))
        learned, validation = validation_part(weighed, settings.share_apart)
        try:
            outcome = train_averaged(
                start.model, start.encoder, learned, validation, settings, checkpoints, on_progress, on_start=on_start
            )
        finally:
            if report is not None:
                report.close()

        def write(directory: Path) -> None:
            self._stages(f"measuring on {len(judged):,} held-out signals")
            save_trained(start.model, settings, directory, self._start, makes_delta=makes_delta)
            heldout = measure_records(start.model, start.encoder, judged, settings)
            known = {**outcome.figures, **heldout.figures("heldout"), **source_figures(measured)}
            (directory / "figures.json").write_text(json.dumps(known))

        if world.is_first:
            write_whole(self._trained, write)

    def conclude(self) -> int:
        """Export the model, judge it, and publish it if that is wanted and allowed. Returns the exit status."""
        about = self._settings.out / RUN
        if not self._version.exists():
            self._stages(f"exporting and judging {self._version}")
            self._export()
        found = json.loads(about.read_text())
        figures, reasons = found["figures"], found["refused_because"]
        shown = {"heldout_pairs": "held-out pairs", "heldout_accuracy": "accuracy", "gate_live_accuracy": "the start's"}
        measured = ", ".join(f"{label} {figures[name]:.3g}" for name, label in shown.items() if name in figures)
        print(f"{self._version}: {measured or 'nothing held out'}", flush=True)
        return conclude(
            self._settings,
            self._id,
            self._version,
            reasons,
            lambda: Manifest.from_json(json.dumps(found["manifest"])),
        )

    def _export(self) -> None:
        """Write the version's files, judge them, and write what is known of them to ``run.json``."""
        start, model, data = self._start(), load_trained(self._trained, self._start), self._records
        anchors = anchors_of_round(self._settings.out, start.directory, data.train, start.encoder)
        length = self._length_share(model, start)
        found: list[Manifest] = []
        refusals: list[str] = []

        def write(directory: Path) -> None:
            exported = export_candidate(model, start, self._learning, self._trial(model, start, length), directory)
            verdict = self._judged(model, start, exported, length)
            if self._learning.checks.are_any:
                checks = self._checks(model, start, length)
                verdict = replace(verdict, figures={**verdict.figures, **check_figures(checks)})
                refusals.extend(str(check.reason) for check in checks if not check.passed)
            refusals.extend(str(reason) for reason in (*verdict.reasons, *exported.reasons))
            if anchors.is_kept_with_version:
                write_anchors(directory / ANCHORS, anchors.anchors)
            found.append(self._manifest(model, start, exported, verdict, anchors, length))

        write_whole(self._version, write)
        (manifest,) = found
        about = {
            "id": self._id,
            "figures": manifest.metrics,
            "refused_because": refusals,
            "manifest": json.loads(manifest.to_json()),
            "settings": self._learning.model_dump(mode="json"),
            "data": {"file": str(self._settings.data), "sha256": self._data.sha256, "records": len(self._data.records)},
            "torch": torch.__version__,
        }
        (self._settings.out / RUN).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")

    def _judged(self, model: RewardModel, start: RewardStart, exported: Exported, length: LengthShare) -> Verdict:
        evidence = evidence_of(self._records.heldout, self._learning)
        candidate = read_evidence(model, start.encoder, evidence, length)
        live = None
        if start.directory is not None:
            live = read_evidence(start.model, start.encoder, evidence, self._length_share_of_start())
        return judge_reward(evidence, candidate, live, exported.parity, RewardGateRules.of(self._learning))

    def _checks(self, model: RewardModel, start: RewardStart, length: LengthShare) -> list[Check]:
        """Make the checks of the settings against the start, and write their report."""
        live = None
        if start.directory is not None:
            live = PolicyJudge(start.model, start.encoder, self._length_share_of_start())
        data, candidate = self._records, PolicyJudge(model, start.encoder, length)
        evidence = evidence_of(data.heldout, self._learning)
        store = ModelStore(self._settings.store or ".", trusted=trusted_keys(self._settings.trusted_keys))
        checks = check_models(evidence, candidate, live, self._learning.checks, store, data.train)
        title = f"{self._settings.model}: the checks of {self._settings.out}"
        write_report(checks_report(title, checks), self._settings.out / "report" / "checks")
        return checks

    def _length_share_of_start(self) -> LengthShare:
        served = self._store.manifest(self._settings.model, self._settings.version)
        return LengthShare.of_calibration(served.calibration)

    def _manifest(
        self,
        model: RewardModel,
        start: RewardStart,
        exported: Exported,
        verdict: Verdict,
        anchors: AnchorSet,
        length: LengthShare,
    ) -> Manifest:
        scale = calibrate_model(model, start.encoder, anchors, length)
        trained = json.loads((self._trained / "figures.json").read_text())
        steps = last_means(read_steps(self._settings.out / "report"))
        trunk = start.trunk.manifest if has_lora(model) and start.trunk else None
        return Manifest(
            model=self._settings.model,
            parent=self._settings.version or None,
            metrics={**steps, **trained, **exported.figures, **verdict.figures},
            calibration=scale.calibration,
            text_format=start.encoder.format.to_json(),
            max_length=start.encoder.max_length,
            heads=model.heads.out_features,
            base=start.base,
            seed=self._learning.seed,
            code_version=code_version(),
            notes={**start.notes, "data": self._data.sha256, "anchors": scale.note, **exported.notes},
            precision=exported.precision,
            trunk=Trunk(trunk.version, trunk.digest) if trunk else None,
        )

    def _trial(self, model: RewardModel, start: RewardStart, length: LengthShare) -> Trial:
        data, pairs = self._records, pairs_of(weighing(self._records.heldout))
        tried = encode_records(start.encoder, (*data.heldout, *data.train)[:_TRIED]).examples
        calibration = encode_records(start.encoder, data.train[:_CALIBRATION]).examples
        return Trial(
            start.encoder,
            [s for example in tried for s in example.sequences],
            pairs,
            lambda: pair_margins(model, start.encoder, pairs, length),
            [s for example in calibration for s in example.sequences],
            length,
        )

    def _length_share(self, model: RewardModel, start: RewardStart) -> LengthShare:
        share, control = self._learning.share_apart, self._learning.length_control
        learned, validation = map(pairs_of, validation_part(weighing(self._records.train), share))
        return fit_length_share(model, start.encoder, validation or learned, learned, control)

    @cached_property
    def _store(self) -> ModelStore:
        return ModelStore(self._settings.store, trusted=trusted_keys(self._settings.trusted_keys))

    @cached_property
    def _records(self) -> Replay:
        """The records, weighed by how far their people are trusted: the same when the command goes on."""
        train, heldout = self._data.split(self._settings.heldout_share)
        start = self._start()
        replay = Replay(new=train, replayed=(), heldout=heldout).readable(start.encoder)
        kept = self._settings.out / TRUST
        if kept.exists():
            trust = Trust.from_json(kept.read_text())
        else:
            trust = self._people.trust(self._settings.trust, partial(self._ask_model, start, replay.train))
            if World().is_first:
                self._settings.out.mkdir(parents=True, exist_ok=True)
                writing = kept.with_suffix(".writing")
                writing.write_text(trust.to_json())
                writing.replace(kept)
        return replay.mapped(lambda records: tuple(weigh_people(records, trust)))

    def _ask_model(self, start: RewardStart, records: Sequence[Record], trust: Trust) -> Mapping[str, float]:
        """Return what the start with a linear fit, which learned from none of the people, says of their choices."""
        if self._settings.version:  # a version may have learned from them
            return {}
        return say_of_people(start, records, trust, self._learning)

    def _start(self) -> RewardStart:
        version = self._settings.version or None
        if version is None:
            return start_from(ModelStore(str(self._settings.out)), None, self._learning, self._learning.seed)
        return start_from(self._store, version, self._learning, self._learning.seed, self._settings.model)


def _step_done(done: Progress) -> StepDone:
    figures = {"loss": done.loss, "accuracy": done.accuracy, "grad_norm": done.gradient_norm}
    figures = {name: value for name, value in figures.items() if value == value}
    return StepDone(done.step, done.steps, figures, seconds=done.seconds)
