"""Opens the judge and the source of pairs that the settings name."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from rewardloop.formats.signatures import trusted_keys
from rewardloop.formats.store import ModelStore
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.redis_link import connect_redis
from rewardloop_trainer.commands.judge.settings import JudgeSettings
from rewardloop_trainer.judging.judge import Judge
from rewardloop_trainer.judging.metrics import JudgeMetrics
from rewardloop_trainer.judging.open_model import open_chat_judge, prepare_torch
from rewardloop_trainer.judging.pairs.candidates import Candidate, read_pairs
from rewardloop_trainer.judging.pairs.live_pairs import LivePairs
from rewardloop_trainer.judging.replies import Replies, WorkFile


@dataclass(frozen=True, slots=True)
class FilePairs:
    """The pairs of a file, as `LivePairs` has those of a deployment."""

    judged_by_people: dict[str, Candidate]
    others: dict[str, Candidate]

    def refresh(self) -> None:
        """Read nothing: a file does not change."""


def open_judge(
    settings: JudgeSettings, work: WorkFile, replies: Replies, metrics: JudgeMetrics, stop: threading.Event
) -> Judge:
    """Open the judge.

    Raises:
        UnusableRubric: If the rubric is none, or has another text than before under its version.
        UnusableBase, StoreError, UnusableKey, OSError: If the model cannot be loaded.
    """
    if not settings.endpoint:
        prepare_torch(settings.torch_threads)
    if settings.reward_base:
        from rewardloop_trainer.judging.open_judge import reward_judge_of_base  # needs torch

        return reward_judge_of_base(settings.reward_base, settings.tie_margin)
    if settings.reward_version:
        from rewardloop_trainer.judging.open_judge import reward_judge_of_version

        store = ModelStore(settings.reward_store, trusted=trusted_keys(settings.trusted_keys))
        return reward_judge_of_version(store, settings.reward_version, settings.tie_margin)
    return open_chat_judge(  # the worker asks for several pairs at once
        settings,
        work,
        replies,
        stop,
        seed=settings.seed,
        on_call=lambda outcome: metrics.calls.labels(outcome=outcome).inc(),
        on_unjudged=lambda reason: metrics.unjudged.labels(reason=reason).inc(),
    )


def open_pairs(settings: JudgeSettings) -> FilePairs | LivePairs:
    """Open the file, or the ledger and the log of generations. Raises what opening them raises."""
    if settings.data is not None:
        found = read_pairs(SourceFile.of(settings.data))
        return FilePairs(
            {each.key: each for each in found if each.people}, {each.key: each for each in found if not each.people}
        )
    ledger = Ledger(settings.archive, writable=False) if settings.archive else None
    client = connect_redis(settings.redis_url) if settings.redis_url else None
    return LivePairs(ledger, client, newest=settings.newest, min_age_s=settings.min_age_s)
