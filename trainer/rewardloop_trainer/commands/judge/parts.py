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
from rewardloop_trainer.judging.chat_judge import ChatJudge, Voting
from rewardloop_trainer.judging.judge import Judge
from rewardloop_trainer.judging.metrics import JudgeMetrics
from rewardloop_trainer.judging.open_model import open_chat, prepare_torch
from rewardloop_trainer.judging.pairs.candidates import Candidate, read_pairs
from rewardloop_trainer.judging.pairs.live_pairs import LivePairs
from rewardloop_trainer.judging.replies import Replies, WorkFile
from rewardloop_trainer.judging.rubric import SHIPPED, Rubric, UnusableRubric


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
    path = settings.rubric or SHIPPED
    rubric = Rubric.read(path)
    if not work.hold(f"rubric/{rubric.label}", rubric.digest):
        had = f"version {rubric.version} had another text in {settings.work_dir}"
        raise UnusableRubric(f"{path}: {had}: give it another version")
    voting = Voting(settings.votes, settings.temperature, settings.max_tokens, settings.seed)

    def on_unjudged(reason: str) -> None:
        metrics.unjudged.labels(reason=reason).inc()

    if settings.base and settings.local_reads == "likelihood":
        from rewardloop_trainer.judging.local_chat import LocalChooser

        return ChatJudge(LocalChooser(settings.base, settings.max_length), rubric, voting, 1, on_unjudged)
    chat = open_chat(settings, replies, stop, lambda outcome: metrics.calls.labels(outcome=outcome).inc())
    return ChatJudge(chat, rubric, voting, 1, on_unjudged)  # the worker asks for several pairs at once


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
