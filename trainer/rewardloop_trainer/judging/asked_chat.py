"""A chat model with a cache, a budget and retries."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import structlog

from rewardloop_trainer.judging.chat import Chat, Reply, Request
from rewardloop_trainer.judging.judge import BudgetSpent, JudgeAway, JudgeError, Stopped
from rewardloop_trainer.judging.replies import Replies

log = structlog.get_logger()

# How a call ended: from the cache, with a reply, without one, or not made at all.
CallOutcome: TypeAlias = Literal["cached", "replied", "timeout", "connection", "busy", "server", "garbage", "refused"]

_CHARACTERS_A_TOKEN = 3  # fewer than in most languages, so that rather too much is reserved
_TURN_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a call is repeated.

    Attributes:
        attempts: Attempts of a call before it is given up.
        first_pause_s: Pause before the second attempt, in seconds; it doubles from then on.
        longest_pause_s: Longest pause. An endpoint that asks for a longer one is given up for now.
    """

    attempts: int = 5
    first_pause_s: float = 0.5
    longest_pause_s: float = 60.0


class AskedChat:
    """A `Chat` that answers a request from the cache if it was answered before, and else asks within the budget."""

    def __init__(
        self,
        chat: Chat,
        replies: Replies,
        patience: Patience,
        stop: threading.Event,
        on_call: Callable[[CallOutcome], None] = lambda outcome: None,
    ) -> None:
        """Take the model.

        Args:
            chat: The model. Each call of it is one attempt.
            replies: The cache and the budget.
            patience: How often a call is repeated.
            stop: Set when the process is asked to end.
            on_call: Called with the outcome of every attempt, from any thread.
        """
        self._chat, self._replies, self._patience, self._stop, self._on_call = chat, replies, patience, stop, on_call
        self._told: set[str] = set()  # reasons that were logged since the last reply

    @property
    def name(self) -> str:
        return self._chat.name

    def complete(self, request: Request) -> Reply:
        """Return the kept reply, or ask for one.

        Raises:
            JudgeAway: If every attempt failed for want of a usable reply.
            BudgetSpent: If an attempt would exceed the budget.
            Stopped: If the process is asked to end between two attempts.
            JudgeRefused, JudgeUnusable: If the model refuses.
        """
        kept = self._replies.get(self._chat.name, request)
        if kept is not None:
            self._on_call("cached")
            return kept
        for attempt in range(1, self._patience.attempts + 1):
            try:
                return self._ask(request)
            except JudgeAway as error:
                pause = self._pause(attempt, error)
                self._tell(error, attempt, pause)
                if attempt == self._patience.attempts or pause > self._patience.longest_pause_s:
                    raise
                if self._stop.wait(pause):
                    raise Stopped("the process is asked to end") from error
        raise AssertionError("an attempt returns or raises")

    def _ask(self, request: Request) -> Reply:
        if self._stop.is_set():
            raise Stopped("the process is asked to end")
        asked = sum(len(turn.content) // _CHARACTERS_A_TOKEN + _TURN_TOKENS for turn in request.messages)
        reserved = asked + request.max_tokens
        day = self._replies.reserve(reserved)
        try:
            reply = self._chat.complete(request)
        except JudgeError as error:
            reason = error.reason if isinstance(error, JudgeAway) else "refused"
            if reason != "timeout":  # a model that is not waited for may have written all the same
                self._replies.release(day, reserved)
            if not isinstance(error, BudgetSpent):
                self._on_call(reason)  # type: ignore[arg-type]  # the reasons of JudgeAway are outcomes
            raise
        self._replies.keep(self._chat.name, request, reply, day, reserved)
        self._told.clear()
        self._on_call("replied")
        return reply

    def _tell(self, error: JudgeAway, attempt: int, pause_s: float) -> None:
        """Log the first failure of its reason since a reply; the others are counted, and logged for debugging."""
        level = log.debug if error.reason in self._told else log.info
        self._told.add(error.reason)
        level("no usable reply", reason=error.reason, error=str(error), attempt=attempt, pause_s=pause_s)

    def _pause(self, attempt: int, error: JudgeAway) -> float:
        """Return what the endpoint asks for, or a pause that doubles, each with up to a quarter more."""
        pause = min(self._patience.first_pause_s * 2.0 ** (attempt - 1), self._patience.longest_pause_s)
        if error.retry_after_s is not None:
            return error.retry_after_s * random.uniform(1.0, 1.1)
        return pause * random.uniform(0.75, 1.0)
