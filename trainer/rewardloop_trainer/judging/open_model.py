"""Opens the chat model that the settings name, with its cache, budget and retries."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rewardloop_trainer.judging.asked_chat import AskedChat, CallOutcome, Patience
from rewardloop_trainer.judging.chat import Chat
from rewardloop_trainer.judging.replies import Budget, Replies
from rewardloop_trainer.judging.settings import ModelSettings


def budget_of(settings: ModelSettings) -> Budget:
    """Return the budget of a day."""
    return Budget(settings.calls_a_day, settings.tokens_a_day or None)


def open_chat(
    settings: ModelSettings,
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
        UnusableBase: If the base is no causal language model.
        OSError: If the file of the key cannot be read.
        ModuleNotFoundError: If the packages of the extra `judge` are missing.
    """
    chat: Chat
    if settings.endpoint:
        from rewardloop_trainer.judging.endpoint import Endpoint, EndpointChat  # needs openai

        chat = EndpointChat(Endpoint(settings.endpoint, settings.model, settings.key(), settings.timeout_s))
    else:
        from rewardloop_trainer.judging.local_chat import LocalChat  # needs torch

        chat = LocalChat(settings.base, settings.max_length)
    patience = Patience(settings.attempts, settings.first_pause_s, settings.longest_pause_s)
    return AskedChat(chat, replies, patience, stop, on_call)


def prepare_torch(threads: int) -> None:
    """Set the threads of torch, if the number is not 0, and silence the progress of loading weights."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    if threads:
        torch.set_num_threads(threads)
