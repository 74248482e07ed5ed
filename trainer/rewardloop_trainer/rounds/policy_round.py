"""One policy round: the ledger's range -> train -> proof -> rollouts -> gate -> publish -> live test -> promote.

The proof is that of an export: the policy worker can serve the trained version, and answers as transformers does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import structlog

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.store import Manifest
from rewardloop.formats.vocabulary import Algorithm
from rewardloop_trainer.assessment.checks import cases_of, check_figures
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.weights.source_weights import measure_sources, weigh_sources
from rewardloop_trainer.evaluation.answers import Contenders, Scorer, compare_policies, server_scorer
from rewardloop_trainer.evaluation.hacking_watch import HackingWatch, Point
from rewardloop_trainer.evaluation.policy_judge import NoJudge
from rewardloop_trainer.export.errors import ExportFailed
from rewardloop_trainer.export.policy import prove_policy
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_report import RunReport
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.policy.examples import Examples, choose_algorithm
from rewardloop_trainer.policy.learn import Trained, learn_policy
from rewardloop_trainer.policy.online.sampler import SamplerAway
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.rewards import Reward, score_groups
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.policy.start import PolicyStart, load_causal_lm, start_from_store
from rewardloop_trainer.rounds.fresh_start import (
    FRESH_SIGNALS,
    StartChoice,
    choose_policy_start,
    note_start,
)
from rewardloop_trainer.rounds.judges.candidate_checks import Asked, CheckedCandidate, UnusableCheck, check_candidate
from rewardloop_trainer.rounds.judges.earlier_judge import earlier_judge
from rewardloop_trainer.rounds.judges.own_judge import own_judge
from rewardloop_trainer.rounds.live_pointer import live_version
from rewardloop_trainer.rounds.model_round import ModelRound, Refused
from rewardloop_trainer.rounds.pauses import Interrupted, ServerAway, Waiting, waiting_for_rewards
from rewardloop_trainer.rounds.policy_anchor import (
    ANCHOR_NOTE,
    UnusableAnchor,
    anchor_version,
    reference_of,
    used_up,
)
from rewardloop_trainer.rounds.policy_canary import PolicyCanary
from rewardloop_trainer.rounds.policy_candidate import PolicyCandidate
from rewardloop_trainer.rounds.publish import POLICY_PARITY, PromotionRefused
from rewardloop_trainer.vocabulary import Phase, Reason, Witness

log = structlog.get_logger()

# What a version's manifest says as its parent's does, unless its round says otherwise.
_INHERITED_NOTES = ("layout", "max_length", FRESH_SIGNALS)
# The figures of a step that a line of the log shows.
_LOGGED = ("accuracy", "margin", "score", "kl", "tokens", "no_end", "clipped", "sampler_kl")


class PolicyRound(ModelRound):
    """Trains by the algorithm that the settings name, from people's preferences or from scored answers of its own."""

    @property
    def _epochs(self) -> int:
        return self._settings.policy.passes

    def _phases(self) -> Mapping[Phase, Callable[[], None]]:
        return {"training": self._train, "trained": self._judge}

    def _train(self) -> None:
        """Train the weights of the round's start, and leave a whole version directory in ``self._version``."""
        if self._begin() is None:
            raise Refused(Reason("no_data", "the store has no policy to start from: export one"))
        if self._settings.policy.gate.judged_by == "live" or self._watch.awaits_person():
            self._refuse_when(self._watch.halt())
        start, most_kl = str(self._chosen_start.version), self._settings.policy.gate.max_anchor_kl
        spent = used_up(self._store, self._anchor, start, most_kl)
        if spent is not None:
            raise Refused(spent)
        self._judge_scorer  # noqa: B018 - a round that nobody can judge is refused before it trains
        if not self._version.exists():
            self._begin_training(self._chosen_start)
            report, (train, heldout) = RunReport(self._reports), self._examples()
            try:
                algorithm = choose_algorithm(self._settings.policy.algorithm, train)
                settings = self._policy_settings.model_copy(update={"algorithm": algorithm})
                learn_policy(
                    self._start.load_to_learn(settings, settings.trainer, settings.token_budget),
                    self._start.encoder,
                    train,
                    heldout,
                    settings,
                    self._score,
                    RunControl(
                        self._directory / "checkpoints",
                        partial(self._on_step, report),
                        self._stop.is_set,
                        partial(self._save, algorithm),
                    ),
                    reference=self._reference,
                )
            except TrainingStopped as error:
                raise Interrupted from error
            except SamplerAway as error:
                raise ServerAway(f"no answers: {error}") from error
            finally:
                report.close()
        self._reach("trained", self._candidate.figures())

    def _examples(self) -> tuple[Examples, Examples]:
        """Return what is learned from and what is held out, with the weights of sources as they are measured.

        A start from the base learns from signals of its whole life.
        """
        train, heldout = self._replay.train, self._replay.heldout
        if self._chosen_start.is_fresh:
            settings = self._settings
            train = tuple(self._records_of_life(settings.policy_fresh_newest, settings.policy_fresh_older))
        measured, floor = measure_sources((*train, *heldout)), self._settings.reward.source_floor
        return Examples.of(weigh_sources(train, measured, floor)), Examples.of(heldout)

    def _score(self, asked: Sequence[Prompt], said: Sequence[Sequence[str]]) -> Sequence[Sequence[Reward | None]]:
        with waiting_for_rewards():
            scored = score_groups(
                self._server, asked, said, model=self._settings.policy.reward_model, on_batch=self._stop_if_asked
            )
        self._teachers.update(each.version for group in scored for each in group if each is not None)
        return scored

    def _on_step(self, report: RunReport, done: StepDone) -> None:
        report(done)
        self._metrics.show_step(done.figures)
        shown = {name: done.figures[name] for name in _LOGGED if name in done.figures}
        timed = {"gradient_norm": done.figures.get("grad_norm", math.nan), "seconds": done.seconds}
        self._report(done.step, done.steps, done.figures["loss"], **timed, **shown)

    def _save(self, algorithm: Algorithm, trained: Trained) -> None:
        """Write the trained version beside its algorithm, its figures and why it ended early."""
        policy = self._start.finished(trained.policy, self._policy_settings)
        loss = self._settings.policy.loss
        self._candidate.write(f"dpo-{loss}" if algorithm == "dpo" else algorithm, trained, self._teachers)
        if trained.taken_back:
            self._metrics.steps_taken_back.inc()

        def write(directory: Path) -> None:
            self._live.write_rest(directory)
            policy.save_pretrained(directory)

        write_whole(self._version, write)

    def _judge(self) -> None:
        try:
            prove_policy(self._version, self._live.encoder)
        except ExportFailed as error:
            raise Refused(Reason("export", str(error))) from error
        judge = self._judge_scorer
        with waiting_for_rewards():
            found = compare_policies(
                self._contenders(),
                self._replay.heldout,
                server_scorer(self._server, None, self._stop_if_asked, self._settings.policy.reward_model),
                self._policy_settings,
                judge,
                self._stop_if_asked,
                self._earlier_judge(),
            )
        self._reach("trained", found.figures)
        self._metrics.show_policy_gate(found.figures)
        RunReport(self._reports).add(found.figures)
        self._drop_old_reports()
        if judge is not None and "gate_win_rate" in found.figures:
            self._testify("judge", "gate_win_rate", found.reasons)
        refusals = list(found.reasons)
        self._worse += found.examples
        if self._settings.policy.checks.are_any:
            refusals += self._check(judge)
        if refusals:
            raise Refused(*refusals)
        self._refuse_when(self._watch.halt())
        self._reach("gated")

    def _earlier_judge(self) -> Scorer | None:
        live = live_version(self._redis, self._store, REWARD)
        return earlier_judge(self._settings, self._store, live, str(self._current.state.parent))

    def _check(self, judge: Scorer | None) -> list[Reason]:
        """Make the checks of the settings and write their report. Returns the reasons of those that refuse."""
        candidate = CheckedCandidate(
            self._contenders(), self._live.tokenizer(), self._replay.heldout, self._policy_settings
        )
        asked = Asked(self._server, self._store, self._settings.work_dir / "checks", self._stop, self._stop_if_asked)
        try:
            checks = check_candidate(candidate, asked, judge)
        except UnusableCheck as error:
            return [Reason("other", f"a check could not be made: {error}")]
        self._reach("trained", check_figures(checks))
        self._metrics.show_policy_gate(check_figures(checks))
        self._write_checks(checks)
        self._worse += cases_of(checks)
        return [check.reason for check in checks if not check.passed]

    def _contenders(self) -> Contenders:
        """Raises `Refused` if drift cannot be measured."""
        settings = self._policy_settings
        candidate, live = load_causal_lm(str(self._version), settings), self._live.load(settings)
        found = reference_of(self._store, self._anchor, str(self._current.state.parent))
        anchor = None if found is None else (found.version, found.load)
        return Contenders(candidate, live, self._live.encoder, anchor)

    @cached_property
    def _judge_scorer(self) -> Scorer | None:
        """What decides which answer wins; None if the scores that the candidate was trained to raise do.

        Raises:
            Refused: If the judge is not shown to agree with people.
            Interrupted: If the process was asked to stop while the judge was trained.
        """
        gate = self._settings.policy.gate
        if gate.judged_by == "live":
            return None
        if gate.judged_by == "version":
            return server_scorer(self._server, gate.judging_version, self._stop_if_asked)
        try:
            judge = own_judge(
                self._settings,
                self._store,
                live_version(self._redis, self._store, REWARD),
                self._current.state,
                self._records_of_judge,
                self._stop.is_set,
            )
            figures, reasons = judge.agreement(self._replay.heldout, self._settings.reward.gate_prompts)
        except NoJudge as error:
            raise Refused(Reason("judge", str(error))) from error
        except TrainingStopped as error:
            raise Interrupted from error
        self._metrics.show_policy_gate(figures)
        self._reach(self._current.state.phase, figures)
        if reasons:
            text = f"no judge: it is not shown to agree with people: {'; '.join(reasons)}"
            raise Refused(Reason("judge", f"{text}; --policy.gate.judge names another judge"))
        return judge.score

    @cached_property
    def _anchor(self) -> str:
        try:
            return anchor_version(self._store, str(self._current.state.parent), self._settings.policy.gate.anchor)
        except UnusableAnchor as error:
            raise Refused(Reason("anchor", str(error))) from error

    def _promote(self) -> None:
        is_live = live_version(self._redis, self._store, "policy") == self._current.state.version
        if self._settings.policy.live_test.share and not is_live:
            self._test_live()
        super()._promote()

    def _test_live(self) -> None:
        """Return if people prefer the published version.

        Raises:
            Waiting: While people have not decided.
            Refused: If people prefer the live version, or the test ended undecided.
        """
        canary = PolicyCanary(self._settings, self._store, self._ledger, self._redis, self._server, self._current.state)
        try:
            look = canary.look()
            self._metrics.show_policy_gate(look.figures)
            self._reach("published", look.figures)
            if look.decision == "running":
                raise Waiting(self._settings.policy.live_test.poll_s, f"people have not decided the live test: {look}")
            if not look.is_won:
                canary.end(str(look))
        except PromotionRefused as error:
            raise Refused(Reason("not_promoted", str(error))) from error
        if look.is_won:
            self._testify("live", "live_win_rate")
            return
        reason = Reason("live_test", str(look))
        self._testify("live", "live_win_rate", [reason])
        raise Refused(reason)

    def _testify(self, witness: Witness, rate: str, reasons: Sequence[str] = ()) -> None:
        """Tell the watch what a witness thinks of the candidate: wins as well as losses.

        A version that was published without a gate has no scores to compare and is not observed.

        Args:
            witness: Who compared the candidate with the live policy.
            rate: The name of its win rate in the round's figures.
            reasons: Why the candidate is refused anyway.

        Raises:
            Refused: If the watch raises an alarm, with ``reasons`` before its own.
        """
        now = self._current.state
        if "gate_candidate_reward" not in now.metrics:
            return
        point = Point(
            now.number,
            witness,
            now.metrics["gate_candidate_reward"],
            score_lower=now.metrics["gate_score_win_rate_lower"],
            win_rate=now.metrics[rate],
            win_rate_upper=now.metrics[f"{rate}_upper"],
            win_rate_lower=now.metrics[f"{rate}_lower"],
        )
        halt = self._watch.observe(point, self._reward_version)
        if halt is not None and (witness == "judge" or reasons):
            self._refuse_when(halt, *reasons)

    def _refuse_when(self, alarm: str | None, *reasons: str) -> None:
        self._metrics.reward_hacking.set(alarm is not None)
        if alarm is not None:
            raise Refused(*reasons, Reason("reward_hacking", alarm))

    def _manifest(self) -> Manifest:
        parent = self._store.manifest("policy", str(self._current.state.parent))
        inherited = {name: parent.notes[name] for name in _INHERITED_NOTES if name in parent.notes}
        return replace(
            self._manifest_of_round(
                {
                    **self._candidate.notes(self._settings.policy.algorithm),
                    ANCHOR_NOTE: self._anchor,
                    "parity": POLICY_PARITY,
                    **inherited,
                    **note_start(self._chosen_start, self._current.state.signals),
                }
            ),
            text_format=parent.text_format,
            max_length=parent.max_length,
            base=parent.base,
        )

    @property
    def _candidate(self) -> PolicyCandidate:
        return PolicyCandidate(self._directory, self._reports)

    @cached_property
    def _teachers(self) -> set[str]:
        """The reward versions that scored answers from which this process has trained."""
        return set()

    @property
    def _watch(self) -> HackingWatch:
        return HackingWatch(self._settings.work_dir / "reward-hacking.json")

    @property
    def _reward_version(self) -> str:
        """What scored the candidates: a version of "reward", or the name of another model or a mixture."""
        return self._settings.policy.reward_model or live_version(self._redis, self._store, REWARD) or ""

    @property
    def _policy_settings(self) -> PolicySettings:
        """The settings with the round's own seed."""
        return self._settings.policy.model_copy(update={"seed": self._current.state.seed})

    @property
    def _reference(self) -> Reference | None:
        """The anchor as the reference; None if it is the version that the round starts from."""
        return reference_of(self._store, self._anchor, str(self._chosen_start.version))

    @cached_property
    def _live(self) -> PolicyStart:
        return start_from_store(self._store, str(self._current.state.parent), max_length=0)

    @cached_property
    def _start(self) -> PolicyStart:
        """What the round trains: the live version, or now and then the base of its line, with all signals anew."""
        return start_from_store(self._store, str(self._chosen_start.version), max_length=0)

    def _choose_start(self) -> StartChoice:
        now, settings = self._current.state, self._settings
        return choose_policy_start(
            self._store,
            str(now.parent),
            now.signals,
            settings.policy_fresh_growth,
            settings.policy.algorithm,
            self._ledger.rows_through,
            self._current.fresh_until,
        )
