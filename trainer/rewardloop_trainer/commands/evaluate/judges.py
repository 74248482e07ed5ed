"""Opens the judges of an evaluation: reward models, and a chat model at an endpoint or on this machine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rewardloop_trainer.assessment.judges import score_judge
from rewardloop_trainer.commands.evaluate.loaded import load_reward
from rewardloop_trainer.commands.evaluate.outcome import Stages
from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings
from rewardloop_trainer.judging.asked_chat import CallOutcome
from rewardloop_trainer.judging.judge import Judge
from rewardloop_trainer.judging.open_model import budget_of, open_chat_judge
from rewardloop_trainer.judging.replies import Replies, WorkFile

_SAID_EVERY = 100  # calls


@contextmanager
def opened_judges(settings: EvaluateSettings, stages: Stages) -> Iterator[list[Judge]]:
    """Open the reward models of ``judges``, and the chat model of ``judge`` if one is named, which comes last.

    The chat model's replies are kept in ``judge_dir``: an evaluation that was stopped pays for none of them twice.

    Raises:
        StoreError, UnusableBase, NothingToTrain: If a model cannot be loaded.
        UnusableRubric, WorkInUse, UnusableWork, OSError: If the rubric or the directory cannot be used.
        ModuleNotFoundError: If the packages of the extra `judge` are missing.
    """
    judges: list[Judge] = []
    for name in settings.judges:
        model = load_reward(settings, name)
        judges.append(score_judge(model.name, model.judge.score))
    if not settings.judge.is_named:
        yield judges
        return
    work, stop = WorkFile(settings.judge_dir or settings.out / "judge"), threading.Event()
    calls: Counter[CallOutcome] = Counter()
    counted = threading.Lock()

    def on_call(outcome: CallOutcome) -> None:
        with counted:
            calls[outcome] += 1
            if calls.total() % _SAID_EVERY == 0:
                told = ", ".join(f"{count:,} {name}" for name, count in sorted(calls.items()))
                stages(f"{calls.total():,} calls of the judge: {told}")

    try:
        judge = open_chat_judge(
            settings.judge,
            work,
            Replies(work, budget_of(settings.judge)),
            stop,
            seed=settings.seed,
            concurrency=settings.judge.concurrency,
            on_call=on_call,
        )
        yield [*judges, judge]
    finally:
        stop.set()
        work.close()
