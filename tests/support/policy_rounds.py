"""A trainer's surroundings with a policy round under way: a store with one policy, a ledger of choices, a server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import redis

from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2
from rewardloop_client import RewardloopClient
from rewardloop_client.fake import FakeRewardloop
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.policy_round import PolicyRound
from rewardloop_trainer.rounds.trainer_state import RoundState, StateFile
from rewardloop_trainer.settings import TrainSettings
from support.learning_runs import THREADS, learning_seed
from support.policy_versions import publish_policy, quick_policy

# What no tiny policy breaks, but for the win rate. About 18 of 60 prompts are held out.
GATE = {
    "judge": "live",
    "least_prompts": 10,
    "max_anchor_kl": 1e6,
    "max_new_tokens": 8,
    "responses": 2,
    "max_kl": 1e6,
    "least_length_ratio": 0.0,
    "max_length_ratio": 100.0,
    "least_distinct_ratio": 0.0,
    "max_empty_share": 1.0,
    "max_more_truncated": 1.0,
    "max_more_repeated": 1.0,
    "max_perplexity_ratio": 1e6,
}


def fake_server(kind: type[FakeRewardloop] = FakeRewardloop, sign: int = 1) -> FakeRewardloop:
    """It likes "a" and short answers; with ``sign=-1``, long ones without."""
    server = kind(
        score=lambda prompt, response: sign * float(response.count("a") - len(response)),
        versions={"reward": ["1", "2"], "policy": ["1", "2", "3"]},
    )
    server.promote("policy", "1")
    return server


def thumb_rows(count: int, wanted: str, unwanted: str) -> list[Recorded]:
    """Thumbs up and down in turn, after the choices of a `Setting`."""
    rows = []
    for i in range(count):
        up = i % 2 == 0
        event = feedback_pb2.FeedbackEvent(event_id=f"t{i}", responses=[wanted if up else unwanted])
        event.prompt.text = f"p{i}"
        event.thumb.response, event.thumb.up = 0, up
        event.arrival_time.FromSeconds(1_700_001_000 + i)
        rows.append(Recorded(f"{1_700_001_000_000 + i}-0", event))
    return rows


class Setting:
    """A round's surroundings.

    ``choices``: number of choices of "a" over "bbbb"; ``more``: signals after them; ``policy``: settings of the
    policy's learning. Without a server and a store it has a fake one, and one policy.
    """

    def __init__(
        self,
        directory: Path,
        redis_url: str,
        *,
        server: RewardloopClient | None = None,
        store: ModelStore | None = None,
        more: Sequence[Recorded] = (),
        choices: int = 60,
        **policy: object,
    ) -> None:
        if store is None:
            store = ModelStore(directory / "models")
            publish_policy(store, *quick_policy(learning_seed()))
        self.store = store
        self.ledger = Ledger(directory / "ledger")
        self.ledger.append([*(self._choice(i) for i in range(choices)), *more])
        self.settings = TrainSettings(
            store=store.url,
            work_dir=directory / "work",
            heldout_share=0.3,
            torch_threads=THREADS,
            policy={"learning_rate": 1e-2, "batch_pairs": 8, "epochs": 4, "sft_weight": 1.0, "gate": GATE, **policy},  # type: ignore[arg-type]
        )
        self.redis = redis.Redis.from_url(redis_url)
        self.server = server or fake_server()
        self.stop = threading.Event()
        self.metrics = TrainerMetrics()
        self.current = CurrentRound("policy", StateFile(self.settings.work_dir), self.metrics)
        last = self.ledger.last_stream_id
        assert last is not None
        signals = choices + len(more)
        self.current.reach(RoundState(1, "training", "", last, signals, signals, seed=learning_seed(7), parent="1"))

    def round(self) -> PolicyRound:
        return PolicyRound(
            self.settings,
            self.store,
            self.ledger,
            self.redis,
            self.server,
            self.metrics,
            self.stop,
            self.current,
        )

    @staticmethod
    def _choice(i: int) -> Recorded:
        event = feedback_pb2.FeedbackEvent(event_id=f"e{i}", responses=["a", "bbbb"])
        event.prompt.text = f"q{i}"
        event.choice.chosen, event.choice.rejected = 0, 1
        event.arrival_time.FromSeconds(1_700_000_000 + i)
        return Recorded(f"{1_700_000_000_000 + i}-0", event)
