"""One training run outside the daemon: rows -> train -> win rate -> ``OUT/policy`` with its ``run.json`` -> store.

``run.json`` is the manifest of a policy that is in no store: it says what the policy came from and how it measured. It
appears together with the weights, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from rewardloop.formats.signatures import trusted_keys
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.vocabulary import OFFLINE_ALGORITHMS
from rewardloop.process.settings import ServerAccess
from rewardloop_client import RewardloopClient
from rewardloop_trainer.assessment.checks import Check, check_figures, checks_report
from rewardloop_trainer.assessment.judges import score_judge
from rewardloop_trainer.assessment.policies.assessors import opened_assessors
from rewardloop_trainer.assessment.policies.checks import check_contenders
from rewardloop_trainer.commands.by_hand import Unpublishable, conclude
from rewardloop_trainer.commands.policy_train_settings import PolicyTrainSettings
from rewardloop_trainer.commands.progress import Beginning, Stages
from rewardloop_trainer.data.base_path import check_base
from rewardloop_trainer.data.files.policy_rows import PolicyData
from rewardloop_trainer.evaluation.answers import Contenders, compare_policies, server_scorer
from rewardloop_trainer.export.errors import ExportFailed
from rewardloop_trainer.export.policy import prove_policy
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_report import RunReport
from rewardloop_trainer.learning.run_rows import last_means, read_steps
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.policy.examples import Examples, NothingToLearnFrom, choose_algorithm
from rewardloop_trainer.policy.learn import Trained, learn_policy
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.rewards import floored_parts, score_groups
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.policy.start import PolicyStart, start_from_base, start_from_store
from rewardloop_trainer.reports.page import write_report
from rewardloop_trainer.rounds.policy_anchor import ANCHOR_NOTE, anchor_version, reference_of
from rewardloop_trainer.rounds.publish import POLICY_PARITY, code_version
from rewardloop_trainer.server_access import open_client

RUN = "run.json"
_HEALTH_S = 10.0
_SUMMARY = {
    "train_steps": "steps",
    "train_score": "score",
    "train_accuracy": "accuracy",
    "train_kl": "KL",
    "gate_win_rate": "win rate",
}
# The settings that change nothing about the weights: a run with others is the same run.
_ASIDE = {
    *("out", "prompts", "server", "publish", "draw_every", "torch_threads", "log_format", "log_level"),
    *("signing_key", "trusted_keys", "device", "gradient_checkpointing", "shard"),
    *ServerAccess.model_fields,
}


def run_policy_training(settings: PolicyTrainSettings, data: PolicyData, stages: Stages) -> int:
    """Train, judge, write and publish a policy. Under torchrun, every process makes this call.

    Returns:
        The exit status.

    Raises:
        ValueError: If the run cannot be done as asked.
        RewardloopError: If the server gave no scores.
        StoreError: If the store cannot be read or written.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]  # a base that does not load whole is refused in our words
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    if settings.base:
        check_base(settings.base, stages)
        run = PolicyRun(settings, data, stages, start_from_base(settings.base, settings.max_length, settings.layout))
    else:
        store = ModelStore(settings.store, trusted=trusted_keys(settings.trusted_keys))
        start = start_from_store(store, settings.version, settings.max_length)
        anchor = anchor_version(store, settings.version, settings.gate.anchor)
        run = PolicyRun(settings, data, stages, start, anchor, reference_of(store, anchor, settings.version))
    if not run.is_done():
        with open_client(settings, settings.server) as server:
            run.train(server)
    return run.conclude()


class PolicyRun:
    """One run of the command: its settings, data and start, and the steps from there to its exit status."""

    def __init__(
        self,
        settings: PolicyTrainSettings,
        data: PolicyData,
        stages: Stages,
        start: PolicyStart,
        anchor: str = "",
        reference: Reference | None = None,
    ) -> None:
        """Prepare the run. Without an anchor, as with a base, the start is the reference and the anchor of its line."""
        self._settings, self._start, self._data = settings, start, data
        self._stages = stages
        self._anchor, self._reference = anchor, reference
        self._train, self._heldout = data.split(settings.heldout_share)
        learning = PolicySettings.model_validate({n: getattr(settings, n) for n in PolicySettings.model_fields})
        algorithm = choose_algorithm(learning.algorithm, _examples(self._train))
        self._learning = learning.model_copy(update={"algorithm": algorithm})
        self._world = World()
        self._policy, self._report = settings.out / "policy", settings.out / "report"
        what = [
            settings.model_dump(mode="json", exclude=_ASIDE),
            data.sha256,
            start.digest,
            reference and reference.digest,
        ]
        self._id = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def is_done(self) -> bool:
        """Say whether this very run has written its policy already. Raises ValueError if another run did."""
        if not self._policy.exists():
            return False
        path = self._policy / RUN
        if not path.exists() or json.loads(path.read_text())["id"] != self._id:
            raise ValueError(f"{self._policy}: exists already, and not from this run: choose another --out")
        return True

    def train(self, server: RewardloopClient) -> None:
        """Train the policy, judge it and write it. Needs the server for scores. Raises ValueError as the run does."""
        if self._settings.publish and not self._heldout.prompts:
            raise ValueError(
                f"--publish needs prompts to judge by, and none of {len(self._train.prompts)} was held out: raise "
                "--heldout-share, or give more prompts"
            )
        asks = self._learning.algorithm not in OFFLINE_ALGORITHMS or self._heldout.prompts
        if asks and not server.health("rewardloop.v1.RewardService", timeout_s=_HEALTH_S):
            raise ValueError(f"{self._settings.server}: its reward service is not ready")
        checkpoints = self._settings.out / "checkpoints"
        on_start = Beginning(checkpoints, self._stages)
        self._stages(f"loading {self._settings.base or f'policy {self._settings.version}'}")
        model = self._start.load_to_learn(self._learning, self._learning.trainer, self._learning.token_budget)
        report = None
        if self._world.is_first:
            report = RunReport(self._report, draw_every=self._settings.draw_every, console=Console())
        try:
            learn_policy(
                model,
                self._start.encoder,
                _examples(self._train),
                _examples(self._heldout),
                self._learning,
                lambda asked, said: score_groups(server, asked, said, model=self._learning.reward_model),
                RunControl(
                    checkpoints,
                    on_step=report or (lambda _: None),
                    save=lambda trained: self._save(trained, server),
                    on_start=on_start,
                ),
                reference=self._reference,
            )
        except NothingToLearnFrom as error:
            raise ValueError(f"{self._settings.prompts}: {error}") from error
        finally:
            if report is not None:
                report.close()

    def _save(self, trained: Trained, server: RewardloopClient) -> None:
        """Judge the policy against the start if prompts were held out, and write it with its ``run.json``."""
        policy = self._start.finished(trained.policy, self._learning)
        if trained.taken_back:
            RunReport(self._report).note(trained.taken_back)
        figures, reasons = {**last_means(read_steps(self._report)), **trained.figures}, list[str]()
        if self._heldout.prompts:
            self._stages(f"judging answers to {len(self._heldout.prompts):,} held-out prompts")
            gate = self._learning.gate
            found = compare_policies(
                Contenders(
                    policy,
                    self._start.load(self._learning),
                    self._start.encoder,
                    None if (anchor := self._reference) is None else (anchor.version, anchor.load),
                ),
                self._heldout.records(),
                server_scorer(server, model=self._learning.reward_model),
                self._learning,
                server_scorer(server, gate.judging_version) if gate.judged_by == "version" else None,
            )
            figures |= found.figures
            reasons += found.reasons
            if self._learning.checks.are_any:
                checks = self._checks(policy, server)
                figures |= check_figures(checks)
                reasons += [check.reason for check in checks if not check.passed]
            RunReport(self._report).add(found.figures)
            if gate.judged_by == "own":
                reasons.append("no judge: this command has no signals to train one: --gate.judge names one")
        else:
            reasons.append("no judge: no prompt was held out to judge it on: --heldout-share keeps some")

        def write(directory: Path) -> None:
            self._start.write_rest(directory)
            policy.save_pretrained(directory)
            files = {str(p.relative_to(directory)): _sha256(p) for p in directory.rglob("*") if p.is_file()}
            about = {**self._about(), "figures": figures, "refused_because": reasons, "files": files}
            about |= {"taken_back": trained.taken_back} if trained.taken_back else {}
            (directory / RUN).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")

        write_whole(self._policy, write)

    def _checks(self, policy: Any, server: RewardloopClient) -> list[Check]:
        """Make the checks of the settings against the start, and write their report.

        Raises:
            As `check_contenders` and `opened_assessors`.
        """
        gate = self._learning.gate
        score = server_scorer(server, gate.judging_version if gate.judged_by == "version" else None)
        store = ModelStore(self._settings.store or ".", trusted=trusted_keys(self._settings.trusted_keys))
        work, checked = self._settings.out / "checks", self._learning.checks
        judge = score_judge(gate.judge, score)
        parts = partial(floored_parts, server, model=self._learning.reward_model)
        with opened_assessors(checked, store, work, threading.Event(), judge, parts) as assessors:
            checks = check_contenders(
                Contenders(policy, self._start.load(self._learning), self._start.encoder),
                self._start.tokenizer(),
                self._heldout.records(),
                self._learning,
                assessors,
            )
        write_report(checks_report(f"policy: the checks of {self._settings.out}", checks), self._report / "checks")
        return checks

    def _about(self) -> dict[str, object]:
        settings, start = self._learning, self._start
        return {
            "id": self._id,
            "algorithm": settings.algorithm,
            "seed": settings.seed,
            "settings": settings.model_dump(mode="json"),
            "start": {"base": start.base, "version": start.version, "digest": start.digest},
            "anchor": self._anchor,
            "data": {
                "file": str(self._settings.prompts),
                "sha256": self._data.sha256,
                "prompts": len(self._train.prompts),
                "pairs": len(self._train.pairs),
                "thumbs": len(self._train.thumbs),
                "heldout_prompts": len(self._heldout.prompts),
                "heldout_share": self._settings.heldout_share,
            },
            "text_format": start.encoder.format.to_json(),
            "max_length": start.encoder.max_length,
            "layout": start.layout,
            "code_version": code_version(),
            "torch": torch.__version__,
            "processes": self._world.size,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def conclude(self) -> int:
        """Print how the policy measured, and publish it if that is wanted and allowed. Returns the exit status."""
        if not self._world.is_first:
            return 0
        about = json.loads((self._policy / RUN).read_text())
        figures, reasons = about["figures"], about["refused_because"]
        shown = {name: figures[name] for name in _SUMMARY if name in figures}
        measured = ", ".join(f"{_SUMMARY[name]} {value:.3g}" for name, value in shown.items())
        print(f"{self._policy}: {about['algorithm']}, {measured}", flush=True)
        if taken_back := about.get("taken_back"):
            print(f"{self._policy}: {taken_back}", flush=True)
        return conclude(self._settings, self._id, self._policy, reasons, lambda: self._manifest(about))

    def _manifest(self, about: dict[str, Any]) -> Manifest:
        """The manifest of a policy that its ``run.json`` is about. Raises `Unpublishable` if it cannot be served."""
        try:
            prove_policy(self._policy, self._start.encoder)
        except ExportFailed as error:
            raise Unpublishable(str(error)) from error
        return Manifest(
            model="policy",
            parent=self._start.version,
            metrics=about["figures"],
            text_format=about["text_format"],
            max_length=about["max_length"],
            base=self._start.base,
            seed=about["seed"],
            code_version=about["code_version"],
            notes={
                "method": about["algorithm"],
                "data": about["data"]["sha256"],
                "layout": about.get("layout", ""),
                "parity": POLICY_PARITY,
                **({ANCHOR_NOTE: about["anchor"]} if about["anchor"] else {}),
                **({"taken_back": about["taken_back"]} if "taken_back" in about else {}),
            },
        )


def _examples(data: PolicyData) -> Examples:
    return Examples(data.prompts, data.pairs, data.thumbs)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
