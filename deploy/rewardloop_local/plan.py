"""What a deployment on one machine runs, and where."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rewardloop.formats.store import ModelStore
from rewardloop_local.security import Security

# The supervisor holds this file's lock. Two deployments on the same data would publish and append beside each other.
UP_LOCK = "up.lock"


class DeploymentError(Exception):
    """The deployment cannot start. The text says why, and which log has more."""


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """The parts of a deployment. Fields without a note here are those of `rewardloop up`.

    Attributes:
        gateway_listen: Address of the HTTP door. If it is empty, there is none.
        redis_url: The user's own Redis. If it is empty, the deployment runs an embedded one.
        reward_base: Base of the first reward model. If it is empty, starter models are trained.
        security: TLS and tokens of all processes.
    """

    data: Path
    listen: str = "127.0.0.1:50051"
    policy_listen: str = "127.0.0.1:50052"
    gateway_listen: str = ""
    metrics_port: int = 9464
    trainer_metrics_port: int = 9465
    policy_metrics_port: int = 9466
    redis_url: str = ""
    redis_memory_mib: int = 0
    reward_base: str = ""
    policy_base: str = ""
    reward_models: Sequence[str] = field(default_factory=tuple)
    mixtures: Path | None = None
    seed: int = 0
    export_args: Sequence[str] = field(default_factory=tuple)
    policy_export_args: Sequence[str] = field(default_factory=tuple)
    serve_args: Sequence[str] = field(default_factory=tuple)
    policy_args: Sequence[str] = field(default_factory=tuple)
    train_args: Sequence[str] = field(default_factory=tuple)
    gateway_args: Sequence[str] = field(default_factory=tuple)
    security: Security = field(default_factory=Security)

    @property
    def store(self) -> Path:
        """The model store."""
        return self.data / "models"

    @property
    def redis_data(self) -> Path:
        """The directory of the embedded Redis."""
        return self.data / "redis"

    @property
    def ledger(self) -> Path:
        """The ledger."""
        return self.data / "ledger"

    @property
    def trainer_work(self) -> Path:
        """The trainer's state and checkpoints."""
        return self.data / "trainer"

    @property
    def anchors(self) -> Path:
        """The texts on which the starter is calibrated, and with it the versions that are trained from it."""
        return self.trainer_work / "anchors.jsonl"

    def model_args(self) -> list[str]:
        """Return the flags that name the further reward models to a process."""
        return ["--reward-models", ",".join(self.reward_models)] if self.reward_models else []

    def mixture_args(self) -> list[str]:
        """Return the flags that name the mixtures to the server."""
        return ["--mixtures", str(self.mixtures)] if self.mixtures else []

    def bases_to_export(self) -> list[str]:
        """The bases that the user names for models of which the store has no version."""
        store = ModelStore(self.store)
        named = (("reward", self.reward_base), ("policy", self.policy_base))
        return [base for model, base in named if base and not store.versions(model)]

    def flags_of_export(self, model: str) -> tuple[str, ...]:
        """Return the user's flags for the export of a model's base, and the anchors if the directory has any."""
        if model == "policy":
            return tuple(self.policy_export_args)
        anchors = ("--anchors", str(self.anchors)) if self.anchors.exists() else ()
        return (*anchors, *self.export_args)

    @property
    def logs(self) -> Path:
        """The folder with a log for each process."""
        return self.data / "logs"

    def metrics_pages(self) -> str:
        """The port of each metrics page with the process that has it, for a message; "none" without pages."""
        pages = [(self.metrics_port, "server"), (self.trainer_metrics_port, "trainer")]
        pages += [(self.policy_metrics_port, "policy worker")] if self.has_policy() else []
        return ", ".join(f":{port} ({process})" for port, process in pages if port) or "none"

    def status_command(self) -> str:
        """The command that shows what this deployment does.

        It has the credentials of the deployment's processes, and a flag for each address that is not the default.
        """
        usual = DeploymentPlan(self.data)  # its addresses are also the defaults of `rewardloop status`
        words = [self.client_command("status")]
        if self.metrics_port not in (0, usual.metrics_port):
            words.append(f"--server-metrics 127.0.0.1:{self.metrics_port}")
        if self.trainer_metrics_port not in (0, usual.trainer_metrics_port):
            words.append(f"--trainer-metrics 127.0.0.1:{self.trainer_metrics_port}")
        return " ".join(words)

    def client_command(self, command: str) -> str:
        """Return a command of `rewardloop` that calls this deployment, with its credentials and its address."""
        words = ["rewardloop", *map(shlex.quote, self.security.access_args()), command]
        if self.listen != DeploymentPlan(self.data).listen:
            words.append(f"--server {self.listen}")
        return " ".join(words)

    def has_policy(self) -> bool:
        """Whether the store has a policy, or gets one with its first versions."""
        store = ModelStore(self.store)
        if store.versions("policy") or self.policy_base:
            return True
        return not store.versions("reward") and not self.reward_base
