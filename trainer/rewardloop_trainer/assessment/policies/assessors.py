"""Who says what of a policy's answers in the checks of its gate, and how they are opened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.assessment.policies.floor_check import ReadParts
from rewardloop_trainer.assessment.safety.open_rater import opened_rater
from rewardloop_trainer.assessment.safety.raters import NamedRater
from rewardloop_trainer.judging.chat_judge import ChatJudge
from rewardloop_trainer.judging.judge import Judge
from rewardloop_trainer.judging.open_model import opened_chat_judge
from rewardloop_trainer.policy.check_settings import PolicyChecks


@dataclass(frozen=True, slots=True)
class Assessors:
    """Who says what of answers. A check whose assessor is not there does not pass.

    Attributes:
        judge: Says which of two answers is better, at like lengths.
        chat: Says the same as they are: a chat model that is asked in both orders.
        rater: Says which answers to suites and attacks are unsafe.
        parts: Gives the values of the mixture's parts that have a floor.
    """

    judge: Judge | None = None
    chat: Judge | None = None
    rater: NamedRater | None = None
    parts: ReadParts | None = None


@contextmanager
def opened_assessors(
    settings: PolicyChecks,
    store: ModelStore,
    work: Path,
    stop: threading.Event,
    judge: Judge | None,
    parts: ReadParts | None = None,
) -> Iterator[Assessors]:
    """Open the models that the settings name, with those that are given.

    Args:
        settings: They name the rater and the chat model.
        store: Of a reward model that rates.
        work: The chat models keep their replies and budgets in its directories judge and rater.
        stop: Set when the process is asked to end.
        judge: As of `Assessors`.
        parts: As of `Assessors`.

    Raises:
        As `opened_rater` and `opened_chat_judge`.
    """
    asked: AbstractContextManager[ChatJudge | None] = nullcontext()
    if settings.judge.is_named:
        asked = opened_chat_judge(settings.judge, work / "judge", stop)
    with opened_rater(settings.rater, store, work / "rater", stop) as rater, asked as chat:
        yield Assessors(judge, chat, rater, parts)
