"""Opens who judges, rates and paraphrases in an evaluation: reward models, and chat models with their replies kept."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rewardloop_trainer.assessment.judges import TextModel, score_judge
from rewardloop_trainer.assessment.policies.people import PeopleJudge
from rewardloop_trainer.assessment.safety.open_rater import opened_rater
from rewardloop_trainer.assessment.safety.raters import NamedRater
from rewardloop_trainer.commands.evaluate.loaded import reward_of, store_of
from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings
from rewardloop_trainer.commands.progress import Stages
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.asked_chat import AskedChat, CallOutcome
from rewardloop_trainer.judging.chat import Request
from rewardloop_trainer.judging.judge import Judge, JudgeRefused
from rewardloop_trainer.judging.open_model import opened_chat, opened_chat_judge

_SAID_EVERY = 100  # calls
_PARAPHRASE_TOKENS = 512
_PARAPHRASE_TEMPERATURE = 1.0


@contextmanager
def opened_judges(settings: EvaluateSettings, stages: Stages) -> Iterator[list[Judge]]:
    """Open the reward models of ``judges``, people's answers, and the chat model of ``judge``, which comes last.

    The chat model's replies are kept in ``judge_dir``: an evaluation that was stopped pays for none of them twice.

    Raises:
        StoreError, UnusableBase, NothingToTrain: If a model cannot be loaded.
        UnusableAnswers, UnreadableFile: If people's answers cannot be read.
        UnusableRubric, WorkInUse, UnusableWork, OSError: If the rubric or the directory cannot be used.
        ModuleNotFoundError: If the packages of the extra `judge` are missing.
    """
    judges: list[Judge] = []
    for name in settings.judges:
        model = reward_of(settings, name)
        judges.append(score_judge(model.name, model.judge.score))
    if settings.people:
        judges.append(PeopleJudge.read(settings.people))
    if not settings.judge.is_named:
        yield judges
        return
    on_call, stop = _counted(stages, "judge"), threading.Event()
    with opened_chat_judge(settings.judge, _work(settings), stop, seed=settings.seed, on_call=on_call) as judge:
        yield [*judges, judge]


@contextmanager
def opened_safety_rater(settings: EvaluateSettings, stages: Stages) -> Iterator[NamedRater | None]:
    """Open the rater of suites and attacks; None if none is named. Exceptions as of `opened_rater`."""
    on_call, stop = _counted(stages, "rater"), threading.Event()
    with opened_rater(settings.rater, store_of(settings), _work(settings) / "rater", stop, on_call) as rater:
        yield rater


@contextmanager
def opened_paraphrase(settings: EvaluateSettings, stages: Stages) -> Iterator[TextModel | None]:
    """Open the chat model that writes attacks in other words; None if none is named. Exceptions as of `opened_chat`."""
    if not settings.paraphrase.is_named:
        yield None
        return
    on_call, stop = _counted(stages, "model that paraphrases"), threading.Event()
    with opened_chat(settings.paraphrase, _work(settings) / "paraphrase", stop, on_call) as chat:
        yield text_model(chat, settings.seed)


def text_model(chat: AskedChat, seed: int) -> TextModel:
    """Return a chat model as one that writes a text for each prompt: an empty one where it refuses to."""

    def write(prompts: Sequence[Prompt]) -> list[str]:
        texts = []
        for prompt in prompts:
            try:
                texts.append(chat.complete(Request(prompt, _PARAPHRASE_TOKENS, _PARAPHRASE_TEMPERATURE, seed)).text)
            except JudgeRefused:
                texts.append("")
        return texts

    return write


def _work(settings: EvaluateSettings) -> Path:
    return settings.judge_dir or settings.out / "judge"


def _counted(stages: Stages, whose: str) -> Callable[[CallOutcome], None]:
    """Return what counts the calls of a chat model, from any thread, and says now and then how they ended."""
    calls: Counter[CallOutcome] = Counter()
    counted = threading.Lock()

    def on_call(outcome: CallOutcome) -> None:
        with counted:
            calls[outcome] += 1
            if calls.total() % _SAID_EVERY == 0:
                told = ", ".join(f"{count:,} {name}" for name, count in sorted(calls.items()))
                stages(f"{calls.total():,} calls of the {whose}: {told}")

    return on_call
