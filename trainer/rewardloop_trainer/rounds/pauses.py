"""Why a round stops before it has ended. None of these is a failure: the round goes on later."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rewardloop_client import DeadlineExceeded, Overloaded, Unavailable
from rewardloop_trainer.judging.judge import BudgetSpent, JudgeAway, Stopped
from rewardloop_trainer.judging.replies import WorkInUse

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = (*(os.strerror(number).lower() for number in _FULL), "database or disk is full")


class Interrupted(Exception):
    """Raised when the process was asked to stop. The round is saved and goes on at the next start."""


class ServerAway(Exception):
    """Raised when the server cannot do now what the round needs; the same call may succeed later."""


class Waiting(Exception):
    """Raised when the round waits for people; it should be looked at again after ``seconds``.

    Args:
        seconds: When.
        reason: What for, in words.
    """

    def __init__(self, seconds: float, reason: str = "people have not decided") -> None:
        super().__init__(f"{reason}: look again in {seconds:g} s")
        self.seconds = seconds
        self.reason = reason


@contextmanager
def waiting_for_rewards() -> Iterator[None]:
    """Raise `ServerAway` if the scoring service, or a chat model that judges or rates, cannot be asked now.

    The round waits for it.

    Raises:
        Interrupted: If the process was asked to end while the chat model was asked.
    """
    try:
        yield
    except (Unavailable, Overloaded, DeadlineExceeded) as error:
        raise ServerAway(f"no rewards: {error}") from error
    except (JudgeAway, BudgetSpent, WorkInUse) as error:
        raise ServerAway(f"no chat model: {error}") from error
    except Stopped as error:
        raise Interrupted from error


def is_disk_full(error: BaseException) -> bool:
    """Say whether a full disk or a spent quota led to ``error``, directly or through the errors that it came from.

    Libraries that are not written in Python (safetensors, tokenizers, SQLite) raise errors of their own with the
    system's text, or one like it, and without its number.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, OSError) and each.errno in _FULL:
            return True
        if any(text in str(each).lower() for text in _FULL_TEXTS):
            return True
        waiting += [each.__cause__, each.__context__]
    return False
