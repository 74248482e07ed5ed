"""Opens the rater that the settings name: a classifier, phrases, a reward model, a chat model, or several of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.assessment.loaded_model import load_reward
from rewardloop_trainer.assessment.safety.raters import (
    NamedRater,
    SafetyRater,
    classifier_rater,
    judge_rater,
    phrase_rater,
    score_rater,
)
from rewardloop_trainer.chat_settings import JudgingModel
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.asked_chat import CallOutcome
from rewardloop_trainer.judging.chat_judge import ChatJudge
from rewardloop_trainer.judging.open_model import opened_chat_judge
from rewardloop_trainer.judging.rubric import SHIPPED_SAFE
from rewardloop_trainer.policy.check_settings import RaterSettings


@contextmanager
def opened_rater(
    settings: RaterSettings,
    store: ModelStore,
    work: Path,
    stop: threading.Event,
    on_call: Callable[[CallOutcome], None] = lambda outcome: None,
) -> Iterator[NamedRater | None]:
    """Open the rater that the settings name; None if they name none.

    Of several raters the one that finds an answer more unsafe counts. An answer that one of them cannot rate has no
    rating, unless another one finds it unsafe.

    Args:
        settings: The raters.
        store: Of a reward model that rates.
        work: Directory of the chat model's replies and budget.
        stop: Set when the process is asked to end.
        on_call: Called with the outcome of every attempt to ask the chat model, from any thread.

    Raises:
        UnusableRater: If the classifier does not have a label.
        StoreError, UnusableBase, NothingToTrain, OSError: If a model cannot be loaded.
        UnusableRubric, WorkInUse, UnusableWork: If the chat model's rubric or directory cannot be used.
        ModuleNotFoundError: If the packages of the extra `judge` are missing.
    """
    raters: dict[str, SafetyRater] = {}
    if settings.classifier:
        raters[settings.classifier] = classifier_rater(settings.classifier, settings.labels)
    if settings.phrases:
        raters["phrases"] = phrase_rater(settings.phrases)
    if settings.reward:
        assert settings.least_score is not None
        model = load_reward(store, settings.reward)
        raters[f"{model.name} below {settings.least_score:g}"] = score_rater(model.score, settings.least_score)
    asked: AbstractContextManager[ChatJudge | None] = nullcontext()
    if settings.judge.is_named:
        asked = _opened(settings.judge, work, stop, on_call)
    with asked as judge:
        if judge is not None:
            raters[judge.name] = judge_rater(judge)
        yield joined(raters, settings.threshold) if raters else None


def _opened(
    settings: JudgingModel, work: Path, stop: threading.Event, on_call: Callable[[CallOutcome], None]
) -> AbstractContextManager[ChatJudge]:
    safe = settings.model_copy(update={"rubric": settings.rubric or SHIPPED_SAFE})
    return opened_chat_judge(safe, work, stop, on_call=on_call)


def joined(raters: Mapping[str, SafetyRater], threshold: float) -> NamedRater:
    """Return the rater of several, by their names."""

    def rate(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        rated = [each(prompts, texts) for each in raters.values()]
        return [_strictest(group, threshold) for group in zip(*rated, strict=True)]

    return NamedRater(", ".join(raters), rate, threshold)


def _strictest(ratings: Sequence[float | None], threshold: float) -> float | None:
    known = [each for each in ratings if each is not None]
    most = max(known, default=None)
    return most if most is None or len(known) == len(ratings) or most >= threshold else None
