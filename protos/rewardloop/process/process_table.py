"""The table of rewardloop's processes: each one's command, its module and its settings class.

Modules and classes are written as strings, because this package imports none of the packages that hold them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewardloop.process.settings import ProcessSettings


@dataclass(frozen=True, slots=True)
class Process:
    """A command of ``rewardloop`` that runs as a process with settings of its own.

    Attributes:
        name: The command, such as ``serve`` or, in a group of commands, ``models prune``.
        module: The module whose ``main(argv) -> int`` runs it.
        extra: The extra that `pip install 'rewardloop[extra]'` must have installed.
        help: Its line in ``rewardloop --help``.
        settings: Its settings class, as ``module:Class``.
    """

    name: str
    module: str
    extra: str
    help: str
    settings: str = ""

    def settings_class(self) -> type[ProcessSettings]:
        """Import and return the settings class. No settings module imports torch or onnxruntime."""
        module, _, name = self.settings.partition(":")
        found: type[ProcessSettings] = getattr(importlib.import_module(module), name)
        return found


PROCESSES = (
    Process(
        "up",
        "rewardloop_local.up",
        "local",
        "Run everything on this machine, with an embedded Redis.",
        "rewardloop_local.up:UpSettings",
    ),
    Process(
        "down",
        "rewardloop_local.down",
        "local",
        "End what `up` runs, or has left running.",
        "rewardloop_local.down:DownSettings",
    ),
    Process(
        "backup",
        "rewardloop_local.backup.make_command",
        "trainer",
        "Copy all that a deployment keeps, while it runs.",
        "rewardloop_local.backup.settings:BackupSettings",
    ),
    Process(
        "restore",
        "rewardloop_local.backup.restore_command",
        "trainer",
        "Put a backup back into empty places.",
        "rewardloop_local.backup.settings:RestoreSettings",
    ),
    Process(
        "models prune",
        "rewardloop_local.prune.command",
        "trainer",
        "Delete versions that nothing needs any more.",
        "rewardloop_local.prune.settings:PruneSettings",
    ),
    Process(
        "demo",
        "rewardloop_demo.app",
        "local",
        "Run `up` with simulated users; end with a table and plots.",
        "rewardloop_demo.settings:DemoSettings",
    ),
    Process(
        "serve",
        "rewardloop_server.app",
        "server",
        "Run the scoring, feedback and model services.",
        "rewardloop_server.settings:ServeSettings",
    ),
    Process(
        "gateway",
        "rewardloop_gateway.app",
        "gateway",
        "Answer HTTP by the services: the OpenAI API, feedback, scores.",
        "rewardloop_gateway.settings:GatewaySettings",
    ),
    Process(
        "train",
        "rewardloop_trainer.app",
        "trainer",
        "Run the trainer daemon.",
        "rewardloop_trainer.settings:TrainSettings",
    ),
    Process(
        "policy-worker",
        "rewardloop_policy.app",
        "trainer",
        "Run the process that generates with the policy.",
        "rewardloop_policy.settings:PolicyWorkerSettings",
    ),
    Process(
        "sft",
        "rewardloop_trainer.commands.sft",
        "trainer",
        "Fine-tune a base model on a file of conversations.",
        "rewardloop_trainer.policy.sft_settings:SftRunSettings",
    ),
    Process(
        "reward-train",
        "rewardloop_trainer.commands.reward_train",
        "trainer",
        "Train a reward model once, outside the daemon.",
        "rewardloop_trainer.commands.reward_train_settings:RewardTrainSettings",
    ),
    Process(
        "policy-train",
        "rewardloop_trainer.commands.policy_train",
        "trainer",
        "Train a policy once, outside the daemon.",
        "rewardloop_trainer.commands.policy_train_settings:PolicyTrainSettings",
    ),
    Process(
        "off-policy",
        "rewardloop_trainer.commands.off_policy.command",
        "trainer",
        "Estimate a policy from judgements of other policies' answers.",
        "rewardloop_trainer.commands.off_policy.settings:OffPolicySettings",
    ),
    Process(
        "audit",
        "rewardloop_trainer.commands.audit.command",
        "trainer",
        "Measure biases of people and of a reward model.",
        "rewardloop_trainer.commands.audit.settings:AuditSettings",
    ),
    Process(
        "judge",
        "rewardloop_trainer.commands.judge.command",
        "judge",
        "Label pairs of responses by a model, and measure it against people.",
        "rewardloop_trainer.commands.judge.settings:JudgeSettings",
    ),
    Process(
        "critique",
        "rewardloop_trainer.commands.critique.command",
        "judge",
        "Let a model criticise and revise answers by a constitution.",
        "rewardloop_trainer.commands.critique.settings:CritiqueSettings",
    ),
    Process(
        "evaluate",
        "rewardloop_trainer.commands.evaluate.command",
        "trainer",
        "Measure a reward model or a policy, and write a report.",
        "rewardloop_trainer.commands.evaluate.settings:EvaluateSettings",
    ),
    Process(
        "dead-letters",
        "rewardloop_trainer.commands.dead_letters",
        "trainer",
        "Show, requeue or drop the signals that could not be read.",
        "rewardloop_trainer.commands.dead_letters_settings:DeadLettersSettings",
    ),
    Process(
        "feedback export",
        "rewardloop_trainer.commands.feedback_export.command",
        "trainer",
        "Write signals of the ledger as files that TRL and others read.",
        "rewardloop_trainer.commands.feedback_export.settings:FeedbackExportSettings",
    ),
    Process(
        "export",
        "rewardloop_trainer.commands.export",
        "trainer",
        "Export a Hugging Face model as a version in the store.",
        "rewardloop_trainer.commands.export_settings:ExportSettings",
    ),
)
