"""Tells who makes a call, and how long the caller waits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from rewardloop_server.doors.callers import PRESENT

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Names the caller of a request that comes without a credential. Callers behind a proxy need it, because the proxy's
# connections are all that the server sees of them.
CALLER_KEY = "rewardloop-caller"


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC as scoring sees it.

    Attributes:
        caller: The name whose share of the queues and of tokenizing the call takes.
        deadline: When the caller stops waiting, on the monotonic clock. None if it waits for ever.
        bulk: The number of a bulk call, which waits under a name of its own; 0 for a call that scores one group.
    """

    caller: str
    deadline: float | None
    bulk: int = 0

    @property
    def queue_name(self) -> str:
        """The name by which runs are fair."""
        return f"{self.caller} #{self.bulk}" if self.bulk else self.caller


def call_of(context: Context) -> Call:
    """Return the call's caller and deadline.

    The caller is the credential's, whatever the request says of itself. Without a credential it is the value of the
    metadata key `CALLER_KEY`, and without that the address of the connection.
    """
    remaining_s = context.time_remaining()
    deadline = None if remaining_s is None else time.monotonic() + remaining_s
    if (credential := PRESENT.get()) is not None:
        return Call(credential.caller, deadline)
    for key, value in context.invocation_metadata() or ():
        if key == CALLER_KEY:
            return Call(str(value), deadline)
    return Call(context.peer(), deadline)
