"""The time limit, lane, retries and observer that apply to every call of one client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from rewardloop_client._connection import Connection
from rewardloop_client._deadline import bounded, checked
from rewardloop_client._observe import Observer
from rewardloop_client._retry import RetryPolicy, RetryThrottle
from rewardloop_client._types import LaneName


@dataclass(frozen=True, slots=True)
class CallRules:
    """``timeout_s`` and ``lane`` apply to calls that name none of their own."""

    timeout_s: float
    lane: LaneName
    policy: RetryPolicy
    observer: Observer | None

    @classmethod
    def of(
        cls,
        timeout_s: float,
        max_attempts: int,
        lane: LaneName,
        connection: Connection | None,
        observer: Observer | None,
    ) -> Self:
        grpc_repeats = connection is not None and connection.retries == "grpc"
        policy = RetryPolicy(max_attempts, throttle=RetryThrottle(), grpc_repeats=grpc_repeats)
        return cls(checked(timeout_s), lane, policy, observer)

    def limit(self, timeout_s: float | None) -> float | None:
        """Return the seconds that a call may take: its own or the client's, and at most what a deadline leaves."""
        return bounded(self.timeout_s if timeout_s is None else timeout_s)
