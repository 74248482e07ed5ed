"""What the trainer reports to Prometheus, prefixed ``rewardloop_trainer_``; `reward_hacking` is the product's alarm."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rewardloop_trainer.state import PHASES

_TRAIN_SECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class TrainerMetrics:
    """One process's instruments, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.signals = Counter("rewardloop_trainer_signals", "Signals archived.", ["kind"], registry=self.registry)
        self.dead_letters = Counter(
            "rewardloop_trainer_dead_letters", "Stream entries that could not be read.", registry=self.registry
        )
        self.duplicates = Counter(
            "rewardloop_trainer_duplicates", "Entries acknowledged because the ledger had them.", registry=self.registry
        )
        self.redis_errors = Counter(
            "rewardloop_trainer_redis_errors", "Times that Redis did not answer the consumer.", registry=self.registry
        )
        self.ledger_rows = Gauge("rewardloop_trainer_ledger_rows", "Rows in the ledger.", registry=self.registry)
        self.stream_pending = Gauge(
            "rewardloop_trainer_stream_pending", "Entries in the stream not yet archived.", registry=self.registry
        )
        self.rounds = Counter(
            "rewardloop_trainer_rounds",
            "Rounds by how they ended: promoted, refused, failed, skipped.",
            ["model", "outcome"],
            registry=self.registry,
        )
        self.train_seconds = Histogram(
            "rewardloop_trainer_train_seconds",
            "A round from its start to its end, in this process.",
            ["model"],
            buckets=_TRAIN_SECONDS,
            registry=self.registry,
        )
        self.loss = Gauge("rewardloop_trainer_loss", "Last training loss.", ["model"], registry=self.registry)
        self.score = Gauge(
            "rewardloop_trainer_score", "Mean score of the policy's answers in the last step.", registry=self.registry
        )
        self.kl = Gauge(
            "rewardloop_trainer_kl", "Their KL to the live policy, in nats an answer.", registry=self.registry
        )
        self.heldout_accuracy = Gauge(
            "rewardloop_trainer_heldout_accuracy",
            "Accuracy on held-out pairs at the last gate.",
            ["model", "side"],
            registry=self.registry,
        )
        self.reward_hacking = Gauge(
            "rewardloop_reward_hacking",
            "1 while no policy is published because scores rose and an independent witness's liking fell.",
            registry=self.registry,
        )
        self.policy_gate = Gauge(
            "rewardloop_trainer_policy_gate",
            "Figures of the last policy gate and live test, by their name in the manifest.",
            ["figure"],
            registry=self.registry,
        )
        self.phase = Gauge(
            "rewardloop_trainer_phase",
            "1 for the phase that the model's round is in.",
            ["model", "phase"],
            registry=self.registry,
        )

    def in_phase(self, model: str, phase: str) -> None:
        """Report that a model's round is in ``phase`` and no other."""
        for name in PHASES:
            self.phase.labels(model=model, phase=name).set(name == phase)
