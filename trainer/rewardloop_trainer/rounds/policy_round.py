"""One policy round: the ledger's range -> train -> rollouts -> rewards -> gate -> publish -> live test -> promote."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from rewardloop.formats.store import Manifest
from rewardloop_client import DeadlineExceeded, Overloaded, Unavailable
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation.answers import compare_policies
from rewardloop_trainer.evaluation.hacking_watch import HackingWatch, Point
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_report import RunReport
from rewardloop_trainer.learning.run_rows import StepDone, last_means, read_steps
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.policy.learn import Examples, Trained, learn_policy
from rewardloop_trainer.policy.rewards import Reward, score_groups
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.policy.start import PolicyStart, load_causal_lm, start_from_store
from rewardloop_trainer.rounds.model_round import ModelRound, Refused
from rewardloop_trainer.rounds.pauses import Interrupted, ServerAway, Waiting
from rewardloop_trainer.rounds.policy_canary import PolicyCanary
from rewardloop_trainer.rounds.publish import PromotionRefused, live_version
from rewardloop_trainer.vocabulary import Phase, Reason, Witness

# The figures of a step that a line of the log shows.
_LOGGED = ("accuracy", "margin", "score", "kl", "tokens", "no_end", "clipped")
_KEPT_REPORTS = 50


class PolicyRound(ModelRound):
    """Trains by the algorithm that the settings name, from people's preferences or from scored answers of its own."""

    model = "policy"

    @property
    def _epochs(self) -> int:
        policy = self._settings.policy
        return {"dpo": policy.epochs, "kto": policy.kto.epochs}.get(policy.algorithm, 1)

    def _phases(self) -> Mapping[Phase, Callable[[], None]]:
        return {"training": self._train, "trained": self._judge}

    def _train(self) -> None:
        """Train the live version's weights, and leave a whole version directory in ``self._version``."""
        if self._begin() is None:
            raise Refused(Reason("no_data", "the store has no policy to start from: export one"))
        self._refuse_when(self._watch.halt(self._reward_version))
        if not self._version.exists():
            report = RunReport(self._reports)
            try:
                learn_policy(
                    self._start.load(),
                    self._start.encoder,
                    Examples.of(self._replay.train),
                    Examples.of(self._replay.heldout),
                    self._policy_settings,
                    self._score,
                    RunControl(
                        self._directory / "checkpoints", partial(self._on_step, report), self._stop.is_set, self._save
                    ),
                )
            except TrainingStopped as error:
                raise Interrupted from error
            finally:
                report.close()
        self._reach("trained", json.loads(self._figures.read_text()))

    def _score(self, asked: Sequence[Prompt], said: Sequence[Sequence[str]]) -> Sequence[Sequence[Reward | None]]:
        with _waiting_for_rewards():
            return score_groups(self._server, asked, said, on_batch=self._stop_if_asked)

    def _on_step(self, report: RunReport, done: StepDone) -> None:
        report(done)
        gauges = {"score": self._metrics.score, "reward": self._metrics.reward, "kl": self._metrics.kl}
        for name, gauge in gauges.items():
            if name in done.figures:
                gauge.set(done.figures[name])
        shown = {name: done.figures[name] for name in _LOGGED if name in done.figures}
        timed = {"gradient_norm": done.figures.get("grad_norm", math.nan), "seconds": done.seconds}
        self._report(done.step, done.steps, done.figures["loss"], **timed, **shown)

    def _save(self, trained: Trained) -> None:
        """Write the trained version beside its figures and the means of its last steps.

        A figure of training takes precedence over a mean of the same name.
        """
        figures = {**last_means(read_steps(self._reports)), **trained.figures}
        self._directory.mkdir(parents=True, exist_ok=True)
        self._figures.write_text(json.dumps(figures))

        def write(directory: Path) -> None:
            self._start.write_rest(directory)
            trained.policy.save_pretrained(directory)

        write_whole(self._version, write)

    def _judge(self) -> None:
        with _waiting_for_rewards():
            found = compare_policies(
                load_causal_lm(str(self._version)),
                self._start.load(),
                self._start.encoder,
                self._replay.heldout,
                self._server,
                self._policy_settings,
                self._stop_if_asked,
            )
        self._reach("trained", found.figures)
        self._metrics.show_policy_gate(found.figures)
        RunReport(self._reports).add(found.figures)
        self._drop_old_reports()
        if self._settings.policy.gate.judge_version and "gate_win_rate" in found.figures:
            self._testify("judge", found.figures["gate_win_rate"], found.figures["gate_win_rate_upper"], found.reasons)
        if not found.passed:
            raise Refused(*found.reasons)
        self._reach("gated")

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
                raise Waiting(self._settings.policy.live_test.poll_s)
            if look.is_won:
                return
            canary.end(str(look))
        except PromotionRefused as error:
            raise Refused(Reason("not_promoted", str(error))) from error
        reason = Reason("live_test", str(look))
        self._testify("live", look.figures["live_win_rate"], look.figures["live_win_rate_upper"], [reason])
        raise Refused(reason)

    def _testify(self, witness: Witness, rate: float, upper: float, reasons: Sequence[str]) -> None:
        """Tell the watch what a witness thinks of the candidate.

        A version that was published without a gate has no scores to compare and is not observed.

        Raises:
            Refused: If the watch raises an alarm, with ``reasons`` before its own.
        """
        now = self._current.state
        if "gate_candidate_reward" not in now.metrics:
            return
        score, lower = now.metrics["gate_candidate_reward"], now.metrics["gate_score_win_rate_lower"]
        point = Point(now.number, witness, score, score_lower=lower, win_rate=rate, win_rate_upper=upper)
        self._refuse_when(self._watch.observe(point, self._reward_version), *reasons)

    def _refuse_when(self, alarm: str | None, *reasons: str) -> None:
        self._metrics.reward_hacking.set(alarm is not None)
        if alarm is not None:
            raise Refused(*reasons, Reason("reward_hacking", alarm))

    def _manifest(self) -> Manifest:
        policy = self._settings.policy
        method = f"dpo-{policy.loss}" if policy.algorithm == "dpo" else policy.algorithm
        parent = self._store.manifest("policy", str(self._current.state.parent))
        return replace(
            self._manifest_of_round({"method": method}),
            text_format=parent.text_format,
            max_length=parent.max_length,
            base=parent.base,
        )

    def _drop_old_reports(self) -> None:
        by_age = sorted(self._reports.parent.glob("policy-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        for old in by_age[:-_KEPT_REPORTS]:
            shutil.rmtree(old)

    @property
    def _figures(self) -> Path:
        return self._directory / "figures.json"

    @property
    def _reports(self) -> Path:
        """The directory in which the run's steps, TensorBoard events and picture stay after the round."""
        return self._settings.work_dir / "reports" / self._directory.name

    @property
    def _watch(self) -> HackingWatch:
        return HackingWatch(self._settings.work_dir / "reward-hacking.json")

    @property
    def _reward_version(self) -> str:
        return live_version(self._redis, self._store, "reward") or ""

    @property
    def _policy_settings(self) -> PolicySettings:
        """The settings with the round's own seed."""
        return self._settings.policy.model_copy(update={"seed": self._current.state.seed})

    @cached_property
    def _start(self) -> PolicyStart:
        return start_from_store(self._store, str(self._current.state.parent), max_length=0)


@contextmanager
def _waiting_for_rewards() -> Iterator[None]:
    """Raise `ServerAway` if the scoring service does not answer, so that the round waits for it."""
    try:
        yield
    except (Unavailable, Overloaded, DeadlineExceeded) as error:
        raise ServerAway(f"no rewards: {error}") from error
