"""Gives a published policy a share of the traffic until people's preferences decide whether it becomes the live one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import redis
import structlog

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.signals import aspect_of
from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.evaluation.live_comparison import Decision, LiveTest
from rewardloop_trainer.rounds.live_pointer import canary_version, live_version
from rewardloop_trainer.rounds.publish import PromotionRefused, set_canary
from rewardloop_trainer.rounds.trainer_state import RoundState
from rewardloop_trainer.settings import TrainSettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Look:
    """What people's preferences say so far, with the figures of the `LiveTest`."""

    decision: Decision
    figures: Mapping[str, float]

    @property
    def is_won(self) -> bool:
        return self.decision == "promote"

    def __str__(self) -> str:
        rate, lower, upper, people, count = (
            self.figures[f"live_{name}"]
            for name in ("win_rate", "win_rate_lower", "win_rate_upper", "people", "preferences")
        )
        return (
            f"live win rate {rate:.3f} [{lower:.3f}, {upper:.3f}] over {people:.0f} people with {count:.0f} "
            f"preferences: {self.decision}"
        )


class PolicyCanary:
    """Compares the version that a policy round published with the version that it started from.

    Everything is read anew from the ledger and the pointer at each look, so a test goes on after a kill at any point.
    """

    def __init__(
        self,
        settings: TrainSettings,
        store: ModelStore,
        ledger: Ledger,
        client: redis.Redis,
        server: RewardloopClient,
        now: RoundState,
    ) -> None:
        if now.version is None or now.parent is None:
            raise ValueError("a published round has a version and a parent")
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._redis = client
        self._server = server
        self._now = now
        self._version = now.version
        self._parent = now.parent

    def look(self) -> Look:
        """Return what the signals since the round began say, and keep up the version's share while the test runs.

        A test that has run for its longest time is undecided.

        Raises:
            PromotionRefused: If somebody else ended the test, or the server refuses the version.
            ServerAway: If the server cannot be reached now.
            redis.RedisError: If Redis cannot be reached now.
        """
        limits = self._settings.policy.live_test
        test = LiveTest(self._version, self._parent, limits)
        for row in self._ledger.scan(after_stream_id=self._now.until_stream_id):
            if aspect_of(row.event) != REWARD:  # it does not say which answer is better altogether
                continue
            if test.add(row.event) != "running":
                break
        decision = test.decision
        if decision == "running":
            published = datetime.fromisoformat(self._store.manifest("policy", self._version).created_at)
            if (datetime.now(UTC) - published).total_seconds() < limits.max_hours * 3600:
                self._keep(limits.share)
            else:
                decision = "undecided"
        if decision == "undecided" and limits.undecided == "promote":
            decision = "promote"
        look = Look(decision, test.figures)
        if decision != "running":
            log.info(
                "live test decided", version=self._version, against=self._parent, decision=decision, **look.figures
            )
        return look

    def end(self, reason: str) -> None:
        """Take the version's share back. Raises what `look` raises."""
        if canary_version(self._redis, self._store, "policy") == self._version:
            set_canary(self._server, "policy", None, 0.0, reason, self._settings.promote_timeout_s)

    def _keep(self, share: float) -> None:
        if canary_version(self._redis, self._store, "policy") == self._version:
            return
        # The figures of an earlier look show that the test had begun, so somebody else took the share away.
        if "live_preferences" in self._now.metrics or live_version(self._redis, self._store, "policy") != self._parent:
            raise PromotionRefused("somebody else ended its live test, or moved the live version")
        reason = f"live test of trainer round {self._now.number}"
        set_canary(self._server, "policy", self._version, share, reason, self._settings.promote_timeout_s)
