"""Opens the chat model that the settings name, with its cache, budget and retries, and makes a judge of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rewardloop_reward.unusable_base import UnusableBase
from rewardloop_trainer.chat_settings import AskedModel, JudgingModel
from rewardloop_trainer.judging.asked_chat import AskedChat, CallOutcome, Patience
from rewardloop_trainer.judging.chat import Chat
from rewardloop_trainer.judging.chat_judge import ChatJudge, Unjudged, Voting
from rewardloop_trainer.judging.replies import Budget, Replies, WorkFile
from rewardloop_trainer.judging.rubric import SHIPPED, Rubric, UnusableRubric


def budget_of(settings: AskedModel) -> Budget:
    """Return the budget of a day."""
    return Budget(settings.calls_a_day, settings.tokens_a_day or None)


def open_chat(
    settings: AskedModel,
    replies: Replies,
    stop: threading.Event,
    on_call: Callable[[CallOutcome], None] = lambda outcome: None,
) -> AskedChat:
    """Open the endpoint, or load the model.

    Args:
        settings: They name an endpoint or a base.
        replies: The cache and the budget.
        stop: Set when the process is asked to end.
        on_call: Called with the outcome of every attempt.

    Raises:
        UnusableBase: If the base is no causal language model, or the packages of the extra `judge` are missing.
        OSError: If the key cannot be used.
    """
    chat: Chat
    if settings.endpoint:
        if find_spec("openai") is None:
            raise UnusableBase("--endpoint needs the package openai: pip install 'rewardloop[judge]'")
        from rewardloop_trainer.judging.endpoint import Endpoint, EndpointChat

        chat = EndpointChat(Endpoint(settings.endpoint, settings.model, settings.key(), settings.timeout_s))
    else:
        from rewardloop_trainer.judging.local_chat import LocalChat  # needs torch

        chat = LocalChat(settings.base, settings.max_length)
    patience = Patience(settings.attempts, settings.first_pause_s, settings.longest_pause_s)
    return AskedChat(chat, replies, patience, stop, on_call)


@contextmanager
def opened_chat(
    settings: AskedModel,
    directory: Path,
    stop: threading.Event,
    on_call: Callable[[CallOutcome], None] = lambda outcome: None,
) -> Iterator[AskedChat]:
    """Open the chat model with its replies and budget in a directory; arguments and exceptions as of `open_chat`.

    Raises:
        WorkInUse, UnusableWork: If the directory cannot be used.
    """
    work = WorkFile(directory)
    try:
        yield open_chat(settings, Replies(work, budget_of(settings)), stop, on_call)
    finally:
        work.close()


@contextmanager
def opened_chat_judge(
    settings: JudgingModel,
    directory: Path,
    stop: threading.Event,
    *,
    seed: int = 0,
    on_call: Callable[[CallOutcome], None] = lambda outcome: None,
) -> Iterator[ChatJudge]:
    """Open the judge with its replies and budget in a directory; arguments and exceptions as of `open_chat_judge`.

    Raises:
        WorkInUse, UnusableWork: If the directory cannot be used.
    """
    work = WorkFile(directory)
    try:
        replies = Replies(work, budget_of(settings))
        yield open_chat_judge(
            settings, work, replies, stop, seed=seed, concurrency=settings.concurrency, on_call=on_call
        )
    finally:
        work.close()


def open_chat_judge(
    settings: JudgingModel,
    work: WorkFile,
    replies: Replies,
    stop: threading.Event,
    *,
    seed: int = 0,
    concurrency: int = 1,
    on_call: Callable[[CallOutcome], None] = lambda outcome: None,
    on_unjudged: Callable[[Unjudged], None] = lambda reason: None,
) -> ChatJudge:
    """Open the judge that asks the chat model of the settings.

    Args:
        settings: The model, and how it judges.
        work: Holds the texts of rubrics by their versions.
        replies: The cache and the budget.
        stop: Set when the process is asked to end.
        seed: Of the first vote.
        concurrency: Comparisons that are asked at once. A model on this machine is asked one by one.
        on_call: Called with the outcome of every attempt, from any thread.
        on_unjudged: Called with the reason for each question without an answer, from any thread.

    Raises:
        UnusableRubric: If the rubric is none, or has another text than before under its version.
        UnusableBase, OSError, ModuleNotFoundError: As of `open_chat`.
    """
    path = settings.rubric or SHIPPED
    rubric = Rubric.read(path)
    if not work.hold(f"rubric/{rubric.label}", rubric.digest):
        raise UnusableRubric(f"{path}: version {rubric.version} had another text before: give it another version")
    voting = Voting(settings.votes, settings.temperature, settings.max_tokens, seed)
    if settings.base and settings.local_reads == "likelihood":
        from rewardloop_trainer.judging.local_chat import LocalChooser

        return ChatJudge(LocalChooser(settings.base, settings.max_length), rubric, voting, 1, on_unjudged)
    chat = open_chat(settings, replies, stop, on_call)
    return ChatJudge(chat, rubric, voting, concurrency if settings.endpoint else 1, on_unjudged)


def prepare_torch(threads: int) -> None:
    """Set the threads of torch, if the number is not 0, and silence the progress of loading weights."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    if threads:
        torch.set_num_threads(threads)
