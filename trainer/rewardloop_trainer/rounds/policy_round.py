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
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from rewardloop.formats.store import MANIFEST, Manifest
from rewardloop.formats.text import Encoder, TextFormat
from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop_client import DeadlineExceeded, Overloaded, Unavailable
from rewardloop_trainer.data.preferences import Prompt, pairs_of, thumbs_of
from rewardloop_trainer.evaluation.answers import verdict
from rewardloop_trainer.evaluation.hacking_watch import HackingWatch, Point
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_report import RunReport
from rewardloop_trainer.learning.run_rows import StepDone, last_means, read_steps
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.policy.dpo_train import DpoProgress, train_policy
from rewardloop_trainer.policy.kto_train import KtoProgress, train_kto
from rewardloop_trainer.policy.online.algorithms import task_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.rewards import Reward, score_groups
from rewardloop_trainer.rounds.model_round import ModelRound, Refused
from rewardloop_trainer.rounds.policy_canary import PolicyCanary
from rewardloop_trainer.rounds.publish import PromotionRefused, live_version
from rewardloop_trainer.rounds.track import Interrupted, ServerAway, Waiting
from rewardloop_trainer.vocabulary import Phase, Reason

# Of a step's figures, those that a line of the log has.
_LOGGED = ("accuracy", "margin", "score", "kl", "tokens", "no_end", "clipped")
_KEPT_REPORTS = 50
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", MANIFEST)


class PolicyRound(ModelRound):
    """By the algorithm that the settings name: from people's preferences, or from own answers that are scored."""

    model = "policy"

    def _phases(self) -> Mapping[Phase, Callable[[], None]]:
        return {"training": self._train, "trained": self._judge}

    def _train(self) -> None:
        """Train the live version's weights, and leave a whole version directory."""
        if self._begin() is None:
            raise Refused(Reason("no_data", "the store has no policy to start from: export one"))
        self._refuse_when(self._watch.halt(self._reward_version))
        if not self._version.exists():
            report = RunReport(self._reports)
            try:
                self._learn(_load(self._parent_directory), partial(self._on_step, report))
            except TrainingStopped as error:
                raise Interrupted from error
            finally:
                report.close()
        self._reach("trained", json.loads(self._figures.read_text()))

    def _learn(self, model: Any, on_step: Callable[[StepDone], None]) -> None:
        """Leaves the version written. Raises `TrainingStopped`."""
        match self._settings.policy.algorithm:
            case "dpo":
                self._learn_from_pairs(model, on_step)
            case "kto":
                self._learn_from_thumbs(model, on_step)
            case "ppo" | "grpo" | "rloo" | "online-dpo" as name:
                self._learn_from_answers(model, name, on_step)

    def _learn_from_pairs(self, model: Any, on_step: Callable[[StepDone], None]) -> None:
        pairs = pairs_of(self._replay.train)
        if not pairs:
            raise Refused(Reason("no_data", "no signal of a training prompt compares different texts"))
        train_policy(
            model,
            self._encoder,
            pairs,
            pairs_of(self._replay.heldout),
            self._settings.policy.dpo.model_copy(update={"seed": self._track.now.seed}),
            RunControl(
                self._directory / "checkpoints",
                lambda done: on_step(_step_done(done.figures.shown(), done)),
                self._stop.is_set,
                lambda outcome: self._save(model, outcome.figures),
            ),
        )

    def _learn_from_thumbs(self, model: Any, on_step: Callable[[StepDone], None]) -> None:
        thumbs = thumbs_of(self._replay.train)
        if not thumbs:
            reason = "no signal of a training prompt is a thumb, or a rating off the middle, as kto needs"
            raise Refused(Reason("no_data", reason))
        train_kto(
            model,
            self._encoder,
            thumbs,
            thumbs_of(self._replay.heldout),
            self._settings.policy.kto,
            RunControl(
                self._directory / "checkpoints",
                lambda done: on_step(_step_done(done.figures.named(), done)),
                self._stop.is_set,
                lambda outcome: self._save(model, outcome.figures),
            ),
            seed=self._track.now.seed,
        )

    def _learn_from_answers(self, model: Any, name: OnlineAlgorithm, on_step: Callable[[StepDone], None]) -> None:
        encoder, seed, train = self._encoder, self._track.now.seed, self._replay.train
        asked = list(dict.fromkeys(record.prompt for record in train))
        task = task_of(name, self._settings.policy, encoder, asked, pairs_of(train), seed)
        if not task.prompts:
            raise Refused(Reason("no_data", "no training prompt leaves room for an answer"))

        def score(asked: Sequence[Prompt], said: Sequence[Sequence[str]]) -> Sequence[Sequence[Reward | None]]:
            with _waiting_for_rewards():
                return score_groups(self._server, asked, said, on_batch=self._stop_if_asked)

        train_online(
            model,
            encoder,
            task,
            score,
            RunControl(
                self._directory / "checkpoints",
                on_step,
                self._stop.is_set,
                lambda policy: self._save(policy, {"train_prompts": float(len(task.prompts))}),
            ),
            seed=seed,
        )

    def _on_step(self, report: RunReport, done: StepDone) -> None:
        report(done)
        gauges = {"score": self._metrics.score, "reward": self._metrics.reward, "kl": self._metrics.kl}
        for name, gauge in gauges.items():
            if name in done.figures:
                gauge.set(done.figures[name])
        shown = {name: done.figures[name] for name in _LOGGED if name in done.figures}
        timed = {"gradient_norm": done.figures.get("grad_norm", math.nan), "seconds": done.seconds}
        self._report(done.step, done.steps, done.figures["loss"], **timed, **shown)

    def _save(self, policy: Any, figures: Mapping[str, float]) -> None:
        """With the last steps' means beside the figures, which count where both have one."""
        figures = {**last_means(read_steps(self._reports)), **figures}
        self._directory.mkdir(parents=True, exist_ok=True)
        self._figures.write_text(json.dumps(figures))

        def write(directory: Path) -> None:
            ignored = shutil.ignore_patterns(*_WEIGHTS)
            shutil.copytree(self._parent_directory, directory, ignore=ignored, dirs_exist_ok=True)
            policy.save_pretrained(directory)

        write_whole(self._version, write)

    def _judge(self) -> None:
        with _waiting_for_rewards():
            found = verdict(
                _load(self._version),
                _load(self._parent_directory),
                self._encoder,
                self._replay.heldout,
                self._server,
                self._settings.policy,
                seed=self._track.now.seed,
                on_batch=self._stop_if_asked,
            )
        self._reach("trained", found.figures)
        self._show(found.figures)
        RunReport(self._reports).add(found.figures)
        self._drop_old_reports()
        if self._settings.policy.gate.judge_version and "gate_win_rate" in found.figures:
            self._testify("judge", found.figures["gate_win_rate"], found.figures["gate_win_rate_upper"], found.reasons)
        if not found.passed:
            raise Refused(*found.reasons)
        self._reach("gated")

    def _promote(self) -> None:
        is_live = live_version(self._redis, self._store, "policy") == self._track.now.version
        if self._settings.policy.live_test.share and not is_live:
            self._test_live()
        super()._promote()

    def _test_live(self) -> None:
        """Returns once people prefer the published version. Raises `Waiting` while they have not decided, and Refused
        when they prefer the live one, or do not decide."""
        canary = PolicyCanary(self._settings, self._store, self._ledger, self._redis, self._server, self._track.now)
        try:
            look = canary.look()
            self._show(look.figures)
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

    def _testify(self, witness: Literal["judge", "live"], rate: float, upper: float, reasons: Sequence[str]) -> None:
        """Tell the watch what the witness thinks of the candidate. Raises Refused, ``reasons`` first, on an alarm.

        A version that was published past the gate has no scores to compare.
        """
        now = self._track.now
        if "gate_candidate_reward" not in now.metrics:
            return
        score, lower = now.metrics["gate_candidate_reward"], now.metrics["gate_score_win_rate_lower"]
        point = Point(now.number, witness, score, score_lower=lower, win_rate=rate, win_rate_upper=upper)
        self._refuse_when(self._watch.observe(point, self._reward_version), *reasons)

    def _refuse_when(self, alarm: str | None, *reasons: str) -> None:
        self._metrics.reward_hacking.set(alarm is not None)
        if alarm is not None:
            raise Refused(*reasons, Reason("reward_hacking", alarm))

    def _show(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._metrics.policy_gate.labels(figure=name).set(value)

    def _manifest(self) -> Manifest:
        policy = self._settings.policy
        method = f"dpo-{policy.loss}" if policy.algorithm == "dpo" else policy.algorithm
        parent = self._store.manifest("policy", str(self._track.now.parent))
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
        """Where the run's steps, TensorBoard events and picture stay after the round."""
        return self._settings.work_dir / "reports" / self._directory.name

    @property
    def _watch(self) -> HackingWatch:
        return HackingWatch(self._settings.work_dir / "reward-hacking.json")

    @property
    def _reward_version(self) -> str:
        return live_version(self._redis, self._store, "reward") or ""

    @cached_property
    def _parent_directory(self) -> Path:
        return self._store.fetch("policy", str(self._track.now.parent))

    @cached_property
    def _encoder(self) -> Encoder:
        manifest = self._store.manifest("policy", str(self._track.now.parent))
        tokenizer = Tokenizer.from_file(str(self._parent_directory / "tokenizer.json"))
        return Encoder(tokenizer, TextFormat.from_json(manifest.text_format), manifest.max_length)


def _step_done(figures: Mapping[str, float], done: DpoProgress | KtoProgress) -> StepDone:
    return StepDone(done.step, done.steps, {**figures, "grad_norm": done.gradient_norm}, seconds=done.seconds)


@contextmanager
def _waiting_for_rewards() -> Iterator[None]:
    """Where the scoring service does not answer, the round waits for it."""
    try:
        yield
    except (Unavailable, Overloaded, DeadlineExceeded) as error:
        raise ServerAway(f"no rewards: {error}") from error


def _load(directory: Path) -> Any:
    """A causal LM in evaluation mode, in float32: small steps are lost in half precision."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
