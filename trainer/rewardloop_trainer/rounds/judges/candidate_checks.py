"""The checks that stand in a policy's gate, made of a round's candidate by whoever the settings name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rewardloop.formats.store import ModelStore, StoreError
from rewardloop_client import RewardloopClient
from rewardloop_data.source_file import UnreadableFile
from rewardloop_trainer.assessment.checks import Check
from rewardloop_trainer.assessment.judges import score_judge
from rewardloop_trainer.assessment.policies.assessors import opened_assessors
from rewardloop_trainer.assessment.policies.checks import check_contenders
from rewardloop_trainer.data.preferences import Record
from rewardloop_trainer.evaluation.answers import Contenders, Scorer, server_scorer
from rewardloop_trainer.judging.judge import JudgeError
from rewardloop_trainer.judging.replies import UnusableWork
from rewardloop_trainer.judging.rubric import UnusableRubric
from rewardloop_trainer.policy.rewards import floored_parts
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.reward.start import NothingToTrain
from rewardloop_trainer.rounds.pauses import waiting_for_rewards

_UNUSABLE = (
    *(ValueError, OSError, UnreadableFile, StoreError, NothingToTrain, ImportError),
    *(JudgeError, UnusableRubric, UnusableWork),
)


class UnusableCheck(Exception):
    """Raised if a check cannot be made, now or later. The text says why."""


@dataclass(frozen=True, slots=True)
class CheckedCandidate:
    """What is checked.

    Attributes:
        contenders: The candidate and the live policy.
        tokenizer: Loads their Hugging Face tokenizer.
        heldout: Records whose prompts both answer.
        settings: The policy's settings with its checks, the gate's judge and the seed of the round.
    """

    contenders: Contenders
    tokenizer: Callable[[], Any]
    heldout: Sequence[Record]
    settings: PolicySettings


@dataclass(frozen=True, slots=True)
class Asked:
    """What may be asked about the candidate.

    Attributes:
        server: Scores answers.
        store: Holds the reward models that judge and rate.
        work: Directory of what chat models have replied.
        stop: Set once the process was asked to end.
        on_batch: Called before each batch of work; it may raise to stop.
    """

    server: RewardloopClient
    store: ModelStore
    work: Path
    stop: threading.Event
    on_batch: Callable[[], None]


def check_candidate(checked: CheckedCandidate, asked: Asked, judge: Scorer | None) -> list[Check]:
    """Make the checks that the settings name.

    Args:
        checked: What is checked.
        asked: What may be asked.
        judge: Who decides which answer wins; None for the live reward model.

    Raises:
        UnusableCheck: If a check cannot be made.
        ServerAway, Interrupted: As of `waiting_for_rewards`.
    """
    settings = checked.settings
    score = judge or server_scorer(asked.server, on_batch=asked.on_batch)
    judging = score_judge(settings.gate.judge, score)
    parts = partial(floored_parts, asked.server, model=settings.reward_model, on_batch=asked.on_batch)
    opened = opened_assessors(settings.checks, asked.store, asked.work, asked.stop, judging, parts)
    try:
        with waiting_for_rewards(), opened as assessors:
            return check_contenders(
                checked.contenders, checked.tokenizer, checked.heldout, settings, assessors, asked.on_batch
            )
    except _UNUSABLE as error:
        raise UnusableCheck(str(error)) from error
