"""Why a request is not carried out, in words for the person who made it."""

from __future__ import annotations

from rewardloop.process.http_status import HTTP_STATUS
from rewardloop_client import RewardloopError


class Refusal(Exception):
    """Raised for a request that the console does not carry out.

    Args:
        status: The HTTP status.
        message: A sentence for the person.
        retry_after_s: Seconds after which another attempt may succeed; None if that is not known.
    """

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


def refusal_of(error: RewardloopError) -> Refusal:
    """Return the refusal for a failed call."""
    return Refusal(HTTP_STATUS.get(error.code, 500), sentence_of(error), error.retry_after_s)


def sentence_of(error: RewardloopError) -> str:
    """Return a sentence about a failed call, with its reason and the time to try again."""
    message = error.message.rstrip(".") or "The call failed"
    reason = f" ({error.reason})" if error.reason else ""
    again = f" Try again in {error.retry_after_s:.0f} s." if error.retry_after_s else ""
    return f"{message[:1].upper()}{message[1:]}{reason}.{again}"
