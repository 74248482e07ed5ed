"""One reward round: the ledger's range -> train -> export -> gate -> calibrate -> publish -> promote."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import structlog

from rewardloop.formats.store import Manifest, StoreError, Trunk
from rewardloop.formats.text import Encoder
from rewardloop_data.source_file import UnreadableFile
from rewardloop_trainer.assessment.checks import Check, cases_of, check_figures
from rewardloop_trainer.assessment.reward_models.checks import check_models
from rewardloop_trainer.data.length_share import LengthShare
from rewardloop_trainer.data.preferences import Record, pairs_of, weighing
from rewardloop_trainer.data.replay import Replay, readable
from rewardloop_trainer.data.validation import validation_part
from rewardloop_trainer.data.weights.source_weights import (
    SourceWeight,
    measure_sources,
    muted_sources,
    source_figures,
    weigh_sources,
)
from rewardloop_trainer.data.weights.trust import Trust
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, evidence_of, read_evidence
from rewardloop_trainer.evaluation.gate_anchor import GATE_ANCHOR, GateAnchor, anchor_of_candidate, meet_best
from rewardloop_trainer.evaluation.policy_judge import PolicyJudge
from rewardloop_trainer.evaluation.refused_examples import reward_examples
from rewardloop_trainer.evaluation.reward_gate import RewardGateRules, judge_reward
from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.export.candidate import Exported, Trial, export_candidate, is_delta
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.reward.anchors import ANCHORS, UnusableAnchors, anchors_of_round, write_anchors
from rewardloop_trainer.reward.average import measure_records, train_averaged
from rewardloop_trainer.reward.calibrate import calibrate_model
from rewardloop_trainer.reward.evaluate import fit_length_share, pair_margins
from rewardloop_trainer.reward.examples import encode_records
from rewardloop_trainer.reward.lora import has_lora
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.start import NothingToTrain, RewardStart, start_from
from rewardloop_trainer.reward.train import Progress
from rewardloop_trainer.rounds.fresh_start import (
    StartChoice,
    choose_start,
    note_start,
    untrained_version,
)
from rewardloop_trainer.rounds.model_round import ModelRound, Refused
from rewardloop_trainer.rounds.pauses import Interrupted
from rewardloop_trainer.rounds.reward_candidate import choose_weights, load_trained, save_trained
from rewardloop_trainer.rounds.round_trust import asked_choices, say_of_people
from rewardloop_trainer.vocabulary import Phase, Reason

log = structlog.get_logger()

_PARITY_RECORDS = 32
_CALIBRATION_RECORDS = 200
_EXPORTED = "exported.json"
_SLOPE_PAIRS = 200


class RewardRound(ModelRound):
    """Trains whole weights, adapters that are merged into them, or a delta over the live version's graph.

    It is a round of "reward" or of another reward model, which learns from the signals of its aspect alone.
    """

    def _ask_model(self, records: Sequence[Record], weights: Trust) -> Mapping[str, float]:
        settings, now = self._settings.reward, self._current.state
        if not asked_choices(records, weights, settings):
            return {}
        base = untrained_version(self._store, self.model, now.parent)
        if base is None and now.parent is not None:
            log.info("the store has no version before the first training, so no model is asked about people")
            return {}
        start = start_from(self._store, base, settings, now.seed, self.model)
        return say_of_people(start, records, weights, settings)

    @property
    def _epochs(self) -> int:
        return max(1, self._settings.reward.epochs)  # the linear fit alone reads the signals, too

    def _phases(self) -> Mapping[Phase, Callable[[], None]]:
        return {"training": self._train, "trained": self._export, "exported": self._judge}

    def _train(self) -> None:
        self._begin()
        try:
            records = self._records
        except NothingToTrain as error:
            raise Refused(Reason("no_weights", str(error))) from error
        if not records.train:
            raise Refused(Reason("no_data", _no_data(self._replay)))
        trained = self._directory / "trained"
        if not trained.exists():
            start, train = self._start_of_training()
            settings = self._settings.reward.model_copy(update={"seed": self._current.state.seed})
            makes_delta, settings = choose_weights(start, settings)
            measured = measure_sources((*train, *self._records.heldout))
            learned, validation = validation_part(self._weighed_by_source(train, measured), settings.share_apart)
            try:
                outcome = train_averaged(
                    start.model,
                    start.encoder,
                    learned,
                    validation,
                    settings,
                    self._directory / "checkpoints",
                    self._on_progress,
                    self._stop.is_set,
                )
            except TrainingStopped as error:
                raise Interrupted from error
            heldout = measure_records(start.model, start.encoder, self._records.heldout, settings)
            known = {**outcome.figures, **heldout.figures("heldout"), **source_figures(measured)}

            def write(directory: Path) -> None:
                save_trained(start.model, settings, directory, self._start, makes_delta=makes_delta)
                (directory / "figures.json").write_text(json.dumps(known))

            write_whole(trained, write)
        figures = json.loads((trained / "figures.json").read_text())
        self._reach("trained", figures)

    def _weighed_by_source(self, train: Sequence[Record], measured: Mapping[str, SourceWeight]) -> list[Record]:
        """Return the records with the measured weights of their sources, without those of muted sources.

        Raises `Refused` if nothing is left.
        """
        floor = self._settings.reward.source_floor
        if muted := muted_sources(measured, floor):
            log.warning("signals of these sources are not learned from: they agree too little", sources=muted)
        self._metrics.show_sources({key: each.weight for key, each in measured.items()}, len(muted))
        weighed = weighing(weigh_sources(train, measured, floor))
        if not weighed:
            sources = f" or of muted sources: {', '.join(muted)}" if muted else ""
            raise Refused(Reason("no_data", f"all signals are of people who are not heard{sources}"))
        return weighed

    def _start_of_training(self) -> tuple[RewardStart, Sequence[Record]]:
        """Return the model that the round trains, and what it learns from."""
        live, chosen = self._start(), self._chosen_start
        self._begin_training(chosen)
        if not chosen.is_fresh:
            return live, self._records.train
        if chosen.version == self._current.state.parent:
            return live, self._records_from_base(live.encoder)
        start = start_from(self._store, chosen.version, self._settings.reward, self._current.state.seed, self.model)
        return start, self._records_from_base(start.encoder)

    def _records_from_base(self, encoder: Encoder) -> Sequence[Record]:
        """Return the training records that a start from the base learns from."""
        settings = self._settings.reward
        return readable(self._records_of_life(settings.fresh_newest, settings.fresh_older), encoder)

    def _choose_start(self) -> StartChoice:
        now, settings = self._current.state, self._settings.reward
        growth = 0.0 if is_delta(self._start(), settings) else settings.fresh_growth
        fresh_until, rows_through = self._current.fresh_until, self._ledger.rows_through
        return choose_start(self._store, now.parent, now.signals, growth, rows_through, fresh_until, self.model)

    def _export(self) -> None:
        start, model = self._start(), self._trained()
        found: list[Exported] = []

        def write(directory: Path) -> None:
            trial = self._trial(model, start.encoder)
            found.append(export_candidate(model, start, self._settings.reward, trial, directory))

        write_whole(self._version, write)
        (self._directory / _EXPORTED).write_text(found[0].to_json())
        self._reach("exported", found[0].figures)

    def _trial(self, model: RewardModel, encoder: Encoder) -> Trial:
        heldout, train = self._records.heldout, self._records.train
        tried = encode_records(encoder, (*heldout, *train)[:_PARITY_RECORDS]).examples
        calibration = encode_records(encoder, train[:_CALIBRATION_RECORDS]).examples
        pairs = pairs_of(weighing(heldout))
        length = self._length_share(model, encoder)
        return Trial(
            encoder,
            [s for example in tried for s in example.sequences],
            pairs,
            lambda: pair_margins(model, encoder, pairs, length),
            [s for example in calibration for s in example.sequences],
            length,
        )

    def _judge(self) -> None:
        """Gate the candidate, calibrate it, and keep its manifest beside its files."""
        start, model = self._start(), self._trained()
        encoder = start.encoder
        length = self._length_share(model, encoder)
        exported = Exported.from_json((self._directory / _EXPORTED).read_text())
        trunk = start.trunk.manifest if has_lora(model) and start.trunk else None
        verdict, anchor = self._verdict(start, model, length, exported.parity)
        refusals = list(verdict.reasons)
        if self._settings.reward.checks.are_any:
            checks = self._checks(start, model, length)
            verdict = replace(verdict, figures={**verdict.figures, **check_figures(checks)})
            refusals += [check.reason for check in checks if not check.passed]
            self._worse += cases_of(checks)
        self._metrics.show_reward_gate(self.model, verdict.figures)
        self._reach("exported", verdict.figures)
        if reasons := (*refusals, *(Reason("export", reason) for reason in exported.reasons)):
            raise Refused(*reasons)
        anchors = anchors_of_round(self._settings.work_dir, start.directory, self._records.train, encoder)
        try:
            scale = calibrate_model(model, encoder, anchors, length)
        except UnusableAnchors as error:
            raise Refused(Reason("not_finite", str(error))) from error
        if anchors.is_kept_with_version:
            write_anchors(self._version / ANCHORS, anchors.anchors)
        anchor.write(self._version / GATE_ANCHOR)
        manifest = replace(
            self._manifest_of_round(
                {
                    **start.notes,
                    **note_start(self._chosen_start, self._current.state.signals),
                    "anchors": scale.note,
                    "parity": f"a logit of the float32 graph differs from torch's by at most {exported.parity:.2g}, on "
                    "texts of the round",
                    **exported.notes,
                }
            ),
            calibration=scale.calibration,
            text_format=encoder.format.to_json(),
            max_length=encoder.max_length,
            heads=model.heads.out_features,
            base=start.base,
            precision=exported.precision,
            trunk=Trunk(trunk.version, trunk.digest) if trunk else None,
        )
        (self._directory / "manifest.json").write_text(manifest.to_json())
        self._reach("gated")

    def _verdict(
        self, start: RewardStart, model: RewardModel, length: LengthShare, parity: float
    ) -> tuple[Verdict, GateAnchor]:
        """Judge the candidate against the live version, and against the best one so far on the anchor set."""
        settings, parent = self._settings.reward, self._current.state.parent
        evidence = evidence_of(self._records.heldout, settings)
        candidate = read_evidence(model, start.encoder, evidence, length)
        rules = RewardGateRules.of(settings)
        live, met = None, None
        if start.directory is not None and parent is not None:
            live = read_evidence(start.model, start.encoder, evidence, self._live_length_share(parent))
            known = GateAnchor.read(start.directory, parent)
            met = meet_best(known, parent, evidence, candidate, live, self._read_version)
        verdict = judge_reward(evidence, candidate, live, parity, rules, met[0] if met else None)
        self._worse += reward_examples(evidence, candidate, live)
        return verdict, anchor_of_candidate(evidence, candidate, met)

    def _checks(self, start: RewardStart, model: RewardModel, length: LengthShare) -> list[Check]:
        """Make the checks of the settings, and write their report."""
        parent = self._current.state.parent
        live = None
        if start.directory is not None and parent is not None:
            live = PolicyJudge(start.model, start.encoder, self._live_length_share(parent))
        evidence = evidence_of(self._records.heldout, self._settings.reward)
        candidate = PolicyJudge(model, start.encoder, length)
        try:
            checks = check_models(
                evidence, candidate, live, self._settings.reward.checks, self._store, self._records.train
            )
        except (ValueError, UnreadableFile, StoreError, NothingToTrain) as error:
            raise Refused(Reason("other", f"a check could not be made: {error}")) from error
        self._write_checks(checks)
        return checks

    def _read_version(self, version: str, evidence: Evidence) -> Readings | None:
        """Return what a version of the store says of the evidence; None if it cannot be loaded any more."""
        try:
            start = start_from(self._store, version, self._settings.reward, self._current.state.seed, self.model)
            return read_evidence(start.model, start.encoder, evidence, self._live_length_share(version))
        except (StoreError, NothingToTrain) as error:
            log.warning("the best version so far cannot be loaded: the anchor set stays", reason=str(error))
            return None

    def _length_share(self, model: RewardModel, encoder: Encoder) -> LengthShare:
        """Return what is taken off the candidate's scores because of length: nothing without length control.

        It is fitted on the validation part of the round's signals, or on others of them if that part is small.
        """
        settings = self._settings.reward
        learned, validation = map(pairs_of, validation_part(weighing(self._records.train), settings.share_apart))
        pairs = validation if len(validation) >= _SLOPE_PAIRS else [*validation, *learned][:_SLOPE_PAIRS]
        return fit_length_share(model, encoder, pairs, learned, settings.length_control)

    def _live_length_share(self, version: str | None) -> LengthShare:
        return LengthShare.of_calibration(self._store.manifest(self.model, version).calibration if version else None)

    def _manifest(self) -> Manifest:
        return Manifest.from_json((self._directory / "manifest.json").read_text())

    @cached_property
    def _records(self) -> Replay:
        start = self._start()  # first, so that no signal is read if there is nothing to start from
        return self._replay.readable(start.encoder)

    def _start(self) -> RewardStart:
        now = self._current.state
        return start_from(self._store, now.parent, self._settings.reward, now.seed, self.model)

    def _trained(self) -> RewardModel:
        return load_trained(self._directory / "trained", self._start)

    def _on_progress(self, progress: Progress) -> None:
        self._report(
            progress.step,
            progress.steps,
            progress.loss,
            gradient_norm=progress.gradient_norm,
            seconds=progress.seconds,
            accuracy=progress.accuracy,
            tokens_per_second=progress.tokens_per_second,
        )


def _no_data(replay: Replay) -> str:
    """Say how many new signals there are, and why none of them is trained on."""
    signals, counted = sum(replay.counts.values()), len(replay.heldout)
    return (
        f"none of {signals} new signals can be trained on: {replay.identical} compare equal texts, {replay.left_out} "
        f"link two sides of the split or cannot be read by the model, and the others are held out or a judge's "
        f"({counted} records are held out)"
    )
