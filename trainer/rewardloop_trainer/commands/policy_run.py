"""One training run outside the daemon: rows -> train -> win rate -> ``OUT/policy`` with its ``run.json`` -> store.

``run.json`` is a version's manifest for a policy that is in no store: what it came from and how it measured. It appears
with the weights, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from rewardloop.formats.signatures import signer, trusted_keys
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop.process.settings import ServerAccess
from rewardloop_client import RewardloopClient
from rewardloop_trainer.commands.policy_train_settings import PolicyTrainSettings
from rewardloop_trainer.data.policy_rows import PolicyData
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation.answers import verdict
from rewardloop_trainer.learning.offline_run import PolicyOutcome
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_report import RunReport
from rewardloop_trainer.learning.run_rows import StepDone, last_means, read_steps
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.policy.dpo_train import train_policy
from rewardloop_trainer.policy.kto_train import train_kto
from rewardloop_trainer.policy.online.algorithms import task_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.rewards import Reward, score_groups
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.policy.start import PolicyStart, start_from_base, start_from_store
from rewardloop_trainer.rounds.publish import code_version, publish_once
from rewardloop_trainer.server_access import connect

log = structlog.get_logger()

RUN = "run.json"
_HEALTH_S = 10.0
_SUMMARY = {
    "train_steps": "steps",
    "train_score": "score",
    "train_accuracy": "accuracy",
    "train_kl": "KL",
    "gate_win_rate": "win rate",
}
# What changes nothing about the weights.
_ASIDE = {
    *("out", "prompts", "server", "publish", "draw_every", "torch_threads", "log_format", "log_level"),
    *("signing_key", "trusted_keys"),
    *ServerAccess.model_fields,
}


def train_by_hand(settings: PolicyTrainSettings, data: PolicyData) -> int:
    """Train, judge, write, publish; the exit status. Every process of the world makes this call.

    Raises ValueError for what cannot be done as asked, RewardloopError without scores, and the store's errors.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    if settings.base:
        start = start_from_base(settings.base, settings.max_length)
    else:
        store = ModelStore(settings.store, trusted=trusted_keys(settings.trusted_keys))
        start = start_from_store(store, settings.version, settings.max_length)
    run = _Run(settings, data, start)
    if not run.is_done():
        with connect(settings, settings.server) as server:
            run.train(server)
    return run.conclude()


class _Run:
    """What a command trains on and where, and the steps from there to its exit status."""

    def __init__(self, settings: PolicyTrainSettings, data: PolicyData, start: PolicyStart) -> None:
        self._settings, self._start, self._data = settings, start, data
        self._train, self._heldout = data.split(settings.heldout_share)
        self._learning = PolicySettings.model_validate({n: getattr(settings, n) for n in PolicySettings.model_fields})
        self._world = World()
        self._policy, self._report = settings.out / "policy", settings.out / "report"
        what = [settings.model_dump(mode="json", exclude=_ASIDE), data.sha256, start.digest]
        self._id = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether this very run has written its policy. Raises ValueError where another did."""
        if not self._policy.exists():
            return False
        path = self._policy / RUN
        if not path.exists() or json.loads(path.read_text())["id"] != self._id:
            raise ValueError(f"{self._policy}: is there already, and not from this run: choose another --out")
        return True

    def train(self, server: RewardloopClient) -> None:
        """Leaves the policy written."""
        asks = self._settings.algorithm not in ("dpo", "kto") or self._heldout.prompts
        if asks and not server.health("rewardloop.v1.RewardService", timeout_s=_HEALTH_S):
            raise ValueError(f"{self._settings.server}: its reward service is not ready")
        self._settings.out.mkdir(parents=True, exist_ok=True)
        model = self._start.load()
        report = None
        if self._world.is_first:
            report = RunReport(self._report, draw_every=self._settings.draw_every, console=Console())
        try:
            self._learn(model, server, report or (lambda _: None))
        finally:
            if report is not None:
                report.close()

    def _learn(self, model: Any, server: RewardloopClient, on_step: Callable[[StepDone], None]) -> None:
        match self._settings.algorithm:
            case "dpo":
                self._learn_from_pairs(model, server, on_step)
            case "kto":
                self._learn_from_thumbs(model, server, on_step)
            case "ppo" | "grpo" | "rloo" | "online-dpo" as name:
                self._learn_from_answers(model, name, server, on_step)

    def _learn_from_pairs(self, model: Any, server: RewardloopClient, on_step: Callable[[StepDone], None]) -> None:
        if not self._train.pairs:
            raise ValueError(f"{self._settings.prompts}: dpo learns from pairs, and has none to train on")
        train_policy(
            model,
            self._start.encoder,
            self._train.pairs,
            self._heldout.pairs,
            self._learning.dpo,
            RunControl(
                self._settings.out / "checkpoints",
                lambda done: on_step(StepDone(done.step, done.steps, done.figures.shown())),
                save=lambda outcome: self._save(model, server, self._figures(outcome)),
            ),
        )

    def _learn_from_thumbs(self, model: Any, server: RewardloopClient, on_step: Callable[[StepDone], None]) -> None:
        if not self._train.thumbs:
            raise ValueError(f"{self._settings.prompts}: kto learns from thumbs, and has none to train on")
        train_kto(
            model,
            self._start.encoder,
            self._train.thumbs,
            self._heldout.thumbs,
            self._learning.kto,
            RunControl(
                self._settings.out / "checkpoints",
                lambda done: on_step(StepDone(done.step, done.steps, done.figures.named())),
                save=lambda outcome: self._save(model, server, self._figures(outcome)),
            ),
            seed=self._learning.seed,
        )

    def _learn_from_answers(
        self, model: Any, name: OnlineAlgorithm, server: RewardloopClient, on_step: Callable[[StepDone], None]
    ) -> None:
        encoder, seed = self._start.encoder, self._learning.seed
        task = task_of(name, self._learning, encoder, self._train.prompts, self._train.pairs, seed)
        if not task.prompts:
            raise ValueError(f"{self._settings.prompts}: no prompt to train on leaves room for an answer")
        if left_out := len(self._train.prompts) - len(task.prompts):
            log.warning("prompts that leave no room for an answer are left out", prompts=left_out)

        def score(asked: Sequence[Prompt], said: Sequence[Sequence[str]]) -> Sequence[Sequence[Reward | None]]:
            return score_groups(server, asked, said)

        def save(policy: Any) -> None:
            means = last_means(read_steps(self._report))
            self._save(policy, server, {"train_prompts": float(len(task.prompts)), **means})

        train_online(
            model,
            encoder,
            task,
            score,
            RunControl(self._settings.out / "checkpoints", on_step, save=save),
            seed=seed,
        )

    def _figures(self, outcome: PolicyOutcome) -> Mapping[str, float]:
        """Also the last steps', for without held-out prompts nothing is measured after them."""
        return {**last_means(read_steps(self._report)), **outcome.figures}

    def _save(self, policy: Any, server: RewardloopClient, trained: Mapping[str, float]) -> None:
        """Judged against the start, where prompts were kept out."""
        figures, reasons = dict(trained), list[str]()
        if self._heldout.prompts:
            live, seed = self._start.load(), self._learning.seed
            found = verdict(
                policy, live, self._start.encoder, self._heldout.records(), server, self._learning, seed=seed
            )
            figures |= found.figures
            reasons += found.reasons
            RunReport(self._report).add(found.figures)

        def write(directory: Path) -> None:
            self._start.write_rest(directory)
            policy.save_pretrained(directory)
            files = {str(p.relative_to(directory)): _sha256(p) for p in directory.rglob("*") if p.is_file()}
            about = {**self._about(), "figures": figures, "refused_because": reasons, "files": files}
            (directory / RUN).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")

        write_whole(self._policy, write)

    def _about(self) -> dict[str, object]:
        settings, start = self._learning, self._start
        return {
            "id": self._id,
            "algorithm": settings.algorithm,
            "seed": settings.seed,
            "settings": settings.model_dump(mode="json"),
            "start": {"base": start.base, "version": start.version, "digest": start.digest},
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
            "code_version": code_version(),
            "torch": torch.__version__,
            "processes": self._world.size,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def conclude(self) -> int:
        """Say what there is, and publish it if wanted and allowed. Returns the exit status."""
        if not self._world.is_first:
            return 0
        about = json.loads((self._policy / RUN).read_text())
        figures, reasons = about["figures"], about["refused_because"]
        shown = {name: figures[name] for name in _SUMMARY if name in figures}
        measured = ", ".join(f"{_SUMMARY[name]} {value:.3g}" for name, value in shown.items())
        print(f"{self._policy}: {about['algorithm']}, {measured}", flush=True)
        for reason in reasons:
            print(f"the gate would refuse it: {reason}", flush=True)
        if not self._settings.publish:
            return 0
        if reasons:
            print("not published", file=sys.stderr, flush=True)
            return 1
        manifest = Manifest(
            model="policy",
            parent=self._start.version,
            metrics=figures,
            text_format=about["text_format"],
            max_length=about["max_length"],
            base=self._start.base,
            seed=about["seed"],
            code_version=about["code_version"],
            notes={"method": about["algorithm"], "data": about["data"]["sha256"]},
        )

        def write(directory: Path) -> None:
            shutil.copytree(self._policy, directory, dirs_exist_ok=True)

        store = ModelStore(self._settings.store, signer=signer(self._settings.signing_key))
        version = publish_once(store, manifest, write, f"by-hand-{self._id[:16]}").version
        print(f"policy {version} published: `rewardloop models promote policy {version}` serves it", flush=True)
        return 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
